"""The torchrun entry: `torchrun --nproc_per_node=8 train.py configs/x.yaml [option=value ...]`."""

from uatmc_dist.launch import main

if __name__ == "__main__":
    main()
