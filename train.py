"""Train a model: ``python train.py model=crystalformer``. ``python train.py --help`` lists the choices."""

from matattn.cli.train import main

if __name__ == "__main__":
    main()
