"""`python -m klscale` is the command `klscale`."""

from klscale.cli import main

main()
