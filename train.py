"""Train a model: ``python train.py model=crystalformer``; ``--help`` lists the choices."""

from matattn.cli.train import main

if __name__ == "__main__":
    main()
