"""Train a network, prune it early and train the small network to the end.

python train.py --flagfile=configs/quickstart.cfg
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads this when it is imported

from tfspline.recipe.command_line import main_entry  # noqa: E402

if __name__ == "__main__":
    main_entry()
