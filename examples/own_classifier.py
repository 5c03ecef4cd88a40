"""RIB on a torchvision ResNet-50 of your own: python -m examples.own_classifier WEIGHTS PHOTO CLASS MAPS.png

CLASS counts from 0. MAPS.png gets the plain CAM of that class and RIB's, each over the photograph.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from data.transforms import pyramid
from misc.cam import combine_scales
from misc.rib import RIB
from net import weights
from net.resnet50_cam import CAM

weights_file, photo, index, maps_file = sys.argv[1:]
state = weights.read(weights_file)  # also under "state_dict" and the like, also with "module." or "model." in front
model = CAM(n_classes=next(len(value) for name, value in state.items() if name.endswith("fc.weight")))
weights.load(model, state)
image = np.asarray(Image.open(photo).convert("RGB").resize((320, 320)))
levels = [torch.from_numpy(level) for level in pyramid(image, (1.0, 0.5, 1.5, 2.0))]
label = torch.eye(model.classifier.out_channels)[int(index)]
steps = []  # [] for companions: pairs of images [B, 3, H, W] and labels [B, C] of other classes, one for every step
RIB(model, lr=8e-6, n_iter=10).run(levels, label, [], lambda k, sums: steps.append([cam.clone() for cam in sums]))
maps = [combine_scales(cams, label.nonzero()[0], image.shape[:2])[1][0] for cams in (steps[0], steps[-1])]
plt.imsave(maps_file, np.hstack([image / 510 + plt.cm.jet(cam.numpy())[..., :3] / 2 for cam in maps]))
