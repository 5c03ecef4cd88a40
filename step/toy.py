"""The paper's toy experiment: is the final sigmoid an information bottleneck? (RIB, section 3 and its figure 2)

It stands apart from the pipeline and does not depend on the dataset. A small network learns to tell 2 from 8 with
sigmoid and cross entropy; copies of it are fine-tuned on single test images as RIB does, with the sigmoid, with another
activation in its place, or with none; and the share of high gradients is counted per layer and region.
"""

import argparse
import itertools
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.digits import DIGITS, REGIONS, Pictures, make_pictures
from misc import made_by, torchutils, toyplots, toytable
from misc.errors import UserError
from misc.files import load_json, save_json, save_torch
from misc.hgr import COMPARED, finetune, gradient_maps, high_gradient_ratio
from misc.progress import bar
from misc.torchutils import rng
from net import weights
from net.toy import ToyNet

THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
MARKED = 0.1  # share of training images that carry their class's mark (RIB, section 3)
EXAMPLES = 2  # test images in the figure of gradients, one per class


def run(args: argparse.Namespace) -> dict:
    """Writes `toy/`: weights and measures of every seed, three figures; returns what they say, by activation."""
    if args.toy_weight_decay < 0:
        raise UserError(f"--toy_weight_decay is {args.toy_weight_decay:g}; wanted 0 or more")
    folder = Path(args.work_dir) / "toy"
    seeds = [args.seed + i for i in range(args.toy_seeds)]
    for seed in torchutils.shard(seeds):
        _one_seed(args, folder, seed)
    torchutils.barrier()
    if torchutils.rank() != 0:
        return {}
    results = [load_json(_result_file(folder, seed)) for seed in seeds]
    everything = {name: np.array([result["hgr"][name] for result in results]) for name in results[0]["hgr"]}
    curves = {name: values[:, 0] for name, values in everything.items()}
    by_threshold = {
        f"{threshold:g}": toytable.falls({name: values[:, i] for name, values in everything.items()})
        for threshold, i in sorted(zip(_thresholds(args), itertools.count(), strict=False))
    }
    summary = toytable.summarise(curves)
    print(toytable.table(curves, args.toy_threshold))
    print(toytable.threshold_table(by_threshold))
    print(toytable.verdicts(summary["claims"]))
    _draw(args, folder, seeds[0], curves)
    logging.info("toy: %s", ", ".join(str(folder / f"{name}.png") for name in toyplots.FIGURES))
    return {
        "images": args.toy_test * len(seeds),
        "seeds": seeds,
        "digits": "rendered" if args.mnist_root is None else "MNIST",
        "accuracy": [result["accuracy"] for result in results],
        "threshold": args.toy_threshold,
        **summary,
        "fall_by_threshold": by_threshold,
    }


def _one_seed(args: argparse.Namespace, folder: Path, seed: int) -> None:
    """Trains and measures one seed, unless that was done with the same settings by the same code."""
    file = _result_file(folder, seed)
    settings = _settings(args, seed)
    before = load_json(file)
    if before and not args.overwrite and _weights_file(folder, seed).is_file():
        then = before.get("settings", {})
        changed = [f"{key} {then.get(key)} then, {now} now" for key, now in settings.items() if then.get(key) != now]
        if not changed:
            logging.info("toy: %s is there already", file)
            return
        logging.warning("toy: %s is made anew, for it was made with %s", file, ", ".join(changed))
    device = torchutils.resolve_device(args.device)
    test = make_pictures("test", args.toy_test, 1.0, seed, args.mnist_root)
    net = _trained(args, seed, device)
    images, labels, regions = _tensors(test, device)
    with torch.inference_mode():
        logits = net(images)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    own = logits.gather(1, labels[:, None]).mean().item()
    logging.info("toy: seed %d: accuracy %.3f on %d test images, mean logit %.1f", seed, accuracy, len(test), own)
    ratios = {"trained": _ratios(args, gradient_maps(net, images, labels), regions)}
    finetuned = {}
    with bar(len(COMPARED) * len(test), f"toy fine-tune, seed {seed}") as progress:
        for activation in COMPARED:
            parts, after, steps = [], [], []
            for i in range(len(test)):
                copied, n_steps = _finetuned(args, net, images[i : i + 1], int(labels[i]), activation)
                maps = gradient_maps(copied, images[i : i + 1], labels[i : i + 1])
                parts.append(_ratios(args, maps, regions[i : i + 1]))
                with torch.inference_mode():
                    after.append(copied(images[i : i + 1])[0, labels[i]].item())
                steps.append(n_steps)
                progress.update()
            ratios[activation] = torch.cat(parts)
            finetuned[activation] = {"median_logit": float(np.median(after)), "mean_steps": float(np.mean(steps))}
    save_torch(_weights_file(folder, seed), net.cpu().state_dict())
    save_json(
        file,
        {
            "settings": settings,
            "accuracy": accuracy,
            "mean_logit": own,
            "finetuned": finetuned,
            "regions": REGIONS,
            "thresholds": _thresholds(args),
            "hgr": {name: value.mean(0).double().cpu().numpy().round(6).tolist() for name, value in ratios.items()},
        },
    )


def _thresholds(args: argparse.Namespace) -> list[float]:
    """The threshold that everything shown rests on, then the others, whose falls are stored beside it."""
    return [args.toy_threshold, *(value for value in THRESHOLDS if value != args.toy_threshold)]


def _ratios(args: argparse.Namespace, maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """HGR at every threshold, float32 [B, thresholds, 3, 6]."""
    return torch.stack([high_gradient_ratio(maps, regions, value) for value in _thresholds(args)], 1)


def _trained(args: argparse.Namespace, seed: int, device: torch.device) -> ToyNet:
    """The network of a seed, trained with sigmoid and cross entropy."""
    pictures = make_pictures("train", args.toy_train, MARKED, seed, args.mnist_root)
    torchutils.seed_everything(seed)
    net = ToyNet(len(DIGITS)).to(device)
    images, labels, _ = _tensors(pictures, device)
    truth = F.one_hot(labels, len(DIGITS)).float()
    batches = len(pictures) // args.toy_batch_size
    if not batches:
        raise UserError(
            f"--toy_train {args.toy_train} images do not fill one batch of --toy_batch_size {args.toy_batch_size}"
        )
    optimizer = torch.optim.Adam(net.parameters(), args.toy_lr, weight_decay=args.toy_weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.toy_lr, total_steps=args.toy_epochs * batches)
    with bar(args.toy_epochs * batches, f"toy train, seed {seed}", "batch") as progress:
        for epoch in range(args.toy_epochs):
            order = torch.from_numpy(rng(seed, "toy", epoch).permutation(len(pictures))).to(device)
            for chosen in order[: batches * args.toy_batch_size].split(args.toy_batch_size):
                loss = F.binary_cross_entropy_with_logits(net(images[chosen]), truth[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"toy: the loss is {loss.item()} in epoch {epoch + 1}; lower --toy_lr")
                progress.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
                progress.update()
    return net.eval()


def _finetuned(args: argparse.Namespace, net: ToyNet, image: torch.Tensor, label: int, activation: str):
    return finetune(net, image, label, activation, args.toy_rib_lr, args.toy_rib_iter, args.toy_stop_th)


def _draw(args: argparse.Namespace, folder: Path, seed: int, curves: dict[str, np.ndarray]) -> None:
    """The three figures, the first two of the first seed."""
    train = make_pictures("train", min(args.toy_train, 80), MARKED, seed, args.mnist_root)
    test = make_pictures("test", min(args.toy_test, 20), 1.0, seed, args.mnist_root)
    net = ToyNet(len(DIGITS))
    weights.load(net, _weights_file(folder, seed))
    images, labels, _ = _tensors(test, torch.device("cpu"))
    rows = {}
    for i in range(min(EXAMPLES, len(test))):
        one, label = images[i : i + 1], labels[i : i + 1]
        rows[i, "trained with sigmoid"] = gradient_maps(net, one, label)[0].numpy()
        copied, _ = _finetuned(args, net, one, int(label), "none")
        rows[i, "fine-tuned, no activation"] = gradient_maps(copied, one, label)[0].numpy()
    toyplots.dataset(folder, train, test)
    toyplots.gradients(folder, test, rows)
    toyplots.curves(folder, curves, args.toy_threshold)


def _tensors(pictures: Pictures, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images float32 [n, 1, H, W] in [0, 1], labels int64 [n], regions uint8 [n, H, W]."""
    images = torch.from_numpy(pictures.images)[:, None].float() / 255
    parts = images, torch.from_numpy(pictures.labels), torch.from_numpy(pictures.regions)
    return tuple(part.to(device) for part in parts)


def _settings(args: argparse.Namespace, seed: int) -> dict:
    """What a stored seed must share with this run."""
    values = {key: value for key, value in vars(args).items() if key.startswith("toy_") and not key.endswith("_pass")}
    del values["toy_seeds"]
    code = made_by.of_record({"code": made_by.of_code(("step.toy",))})
    return {"seed": seed, "mnist_root": args.mnist_root, **values, "code_sha256": code}


def _weights_file(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}.pth"


def _result_file(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}.json"
