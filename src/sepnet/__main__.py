"""``python -m sepnet`` is the command ``sepnet``; under torchrun: ``torchrun --nproc-per-node 2 -m sepnet train ...``."""

from sepnet.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
