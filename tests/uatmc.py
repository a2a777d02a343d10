"""`uatmc` as a file that a process can run."""

from uatmc_dist.cli import main

if __name__ == "__main__":
    main()
