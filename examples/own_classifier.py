"""RIB on a torchvision ResNet-50 of your own: the plain CAM of a class and RIB's, each over the photograph."""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageOps

from data.transforms import pyramid
from misc import cam, rib
from net import resnet50_cam, weights

parser = argparse.ArgumentParser(usage="python -m examples.own_classifier WEIGHTS PHOTO CLASS MAPS.png", epilog=__doc__)
parser.add_argument("arguments", nargs=4, help="weights file, photograph, class (from 0), file to be written")
weights_file, photo, index, maps_file = parser.parse_args().arguments
try:
    state = weights.read(weights_file)  # also under "state_dict" and the like, also with "module." or "model." before
    model = resnet50_cam.CAM(next((len(value) for name, value in state.items() if name.endswith("fc.weight")), 1))
    weights.load(model, state)
    label = torch.eye(model.classifier.out_channels)[int(index)]
    image = np.asarray(ImageOps.contain(Image.open(photo).convert("RGB"), (320, 320)))
except Exception as error:
    parser.error(str(error))
levels = [torch.from_numpy(level) for level in pyramid(image, (1.0, 0.5, 1.5, 2.0))]
steps = []  # [] for companions: pairs of images [B, 3, H, W] and labels [B, C] of other classes, one for every step
rib.RIB(model, lr=8e-6, n_iter=10).run(levels, label, [], lambda k, sums: steps.append([s.clone() for s in sums]))
maps = [cam.combine_scales(sums, label.nonzero()[0], image.shape[:2])[1][0] for sums in (steps[0], steps[-1])]
plt.imsave(maps_file, np.hstack([image / 510 + plt.cm.jet(each.numpy())[..., :3] / 2 for each in maps]))
