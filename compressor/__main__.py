"""The command line as ``python -m compressor``, for an interpreter without the script."""

from compressor.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
