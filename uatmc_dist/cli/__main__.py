from uatmc_dist.cli import main

main()
