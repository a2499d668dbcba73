"""`python -m steadynorm.cli`."""

from . import main

main()
