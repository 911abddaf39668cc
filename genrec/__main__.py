"""`python -m genrec`, for `accelerate launch -m genrec`."""

from genrec.cli import main

if __name__ == "__main__":
    main()
