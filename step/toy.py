"""The paper's toy experiment: is the final sigmoid an information bottleneck? (RIB, section 3 and its figure 2)

It stands apart from the pipeline and does not depend on the dataset. A small network learns to tell 2 from 8 with
sigmoid and cross entropy; copies of it are fine-tuned on single test images as RIB does, with the sigmoid, with another
activation in its place, or with none; and the share of high gradients is counted per layer and region.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data.base import rng
from data.digits import DIGITS, REGIONS, Pictures, fetch_mnist, make_pictures
from data.errors import UserError
from data.files import load_json, save_json, save_torch, write_atomic
from data.progress import bar
from misc import torchutils
from misc.hgr import COMPARED, finetune, gradient_maps, high_gradient_ratio
from misc.report import plots
from misc.report.toy import summarise, text
from misc.run.provenance import check_same, code_version
from net import weights
from net.toy import LAYERS, ToyNet

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the gradient; which one is right, the paper does not say
MARKED = 0.1  # share of training images that carry their class's mark (RIB, section 3)
EXAMPLES = 2  # test images in the figure of gradients, one per class


def run(args: argparse.Namespace) -> dict:
    """Writes `toy/`: weights and measures of every seed, tables, three figures; returns what they say."""
    if args.mnist_root is not None:
        torchutils.on_first_rank(lambda: fetch_mnist(args.mnist_root))
    folder = Path(args.work_dir) / "toy"
    seeds = [args.seed + i for i in range(args.toy_seeds)]
    files = {seed: folder / f"seed_{seed}.json" for seed in seeds}
    if args.overwrite:  # all at once, so that a run that is cut off goes on without it
        torchutils.on_first_rank(lambda: [file.unlink(missing_ok=True) for file in files.values()])
    for seed in torchutils.shard(seeds):
        _one_seed(args, files[seed], seed)
    torchutils.barrier()
    if torchutils.rank() != 0:
        return {}
    results = [load_json(file) for file in files.values()]
    by_threshold = {
        threshold: {
            name: np.array([result["hgr"][name][result["thresholds"].index(threshold)] for result in results])
            for name in results[0]["hgr"]
        }
        for threshold in _thresholds(args)
    }
    logits, steps = (
        {name: [result[key][name] for result in results] for name in results[0][key]} for key in ("logits", "steps")
    )
    accuracy = [result["accuracy"] for result in results]
    summary = summarise(by_threshold, args.toy_threshold, logits, steps, accuracy, args.toy_rib_lr)
    table = text(summary)
    print(table)
    write_atomic(folder / "table.txt", lambda file: file.write(f"{table}\n".encode()))
    if not summary["claims"]:
        logging.warning("toy: %s", summary["notes"][0])
    _draw(args, folder, seeds[0], by_threshold[args.toy_threshold])
    written = ("table.txt", *(f"{name}.png" for name in plots.TOY_FIGURES))
    logging.info("toy: %s", ", ".join(str(folder / name) for name in written))
    return {
        "images": args.toy_test * len(seeds),
        "seeds": seeds,
        "digits": "rendered" if args.mnist_root is None else "MNIST",
        "accuracy": accuracy,
        **summary,
    }


def _one_seed(args: argparse.Namespace, file: Path, seed: int) -> None:
    """Trains and measures one seed, as far as that was not done with the same settings."""
    made, device, net = _made_by(args, seed), torchutils.resolve_device(args.device), _untrained(seed)
    stored = _stored(file, made, net)
    if {*_thresholds(args)} <= {*stored.get("thresholds", ())}:
        logging.info("toy: %s exists, skipping", file)
        return
    if stored:
        logging.info("toy: %s lacks threshold %g; measured again with its weights", file, args.toy_threshold)
        net.to(device).eval()
    else:
        net = _trained(args, seed, device)
    measured = _measured(args, net, seed, device)
    file.unlink(missing_ok=True)  # or, with the job killed right here, it would tell of other weights
    save_torch(file.with_suffix(".pth"), net.cpu().state_dict())
    save_json(file, {"made_by": made, **measured})


def _stored(file: Path, made: dict, net: ToyNet) -> dict:
    """What a stored seed tells, its weights loaded into `net`; {} where it is not there.

    UserError if it was made with other settings, or is damaged.
    """
    try:
        stored = load_json(file)
        if not stored or not file.with_suffix(".pth").is_file():
            return {}
        weights.load(net, file.with_suffix(".pth"))
    except UserError as error:
        raise UserError(f"toy: {error}; or make the seeds again with --overwrite") from error
    check_same(file, stored["made_by"], made)
    return stored


def _measured(args: argparse.Namespace, net: ToyNet, seed: int, device: torch.device) -> dict:
    """Accuracy; per network (before and after training, fine-tuned copies) what is measured over the test images.

    The median logit, the mean number of fine-tuning steps, and HGR [thresholds, 3, 7].
    """
    images, labels, regions = _tensors(make_pictures("test", args.toy_test, 1.0, seed, args.mnist_root), device)
    logits, steps, ratios = {}, {}, {}

    def ratios_of(model: ToyNet, part: slice = slice(None)) -> torch.Tensor:
        """HGR at every threshold, float32 [B, thresholds, 3, 7]."""
        maps = gradient_maps(model, images[part], labels[part])
        return torch.stack([high_gradient_ratio(maps, regions[part], value) for value in _thresholds(args)], 1)

    for name, model in (("untrained", _untrained(seed).to(device)), ("trained", net)):
        with torch.inference_mode():
            scores = model(images)
        logits[name] = scores.gather(1, labels[:, None]).flatten().tolist()
        ratios[name] = ratios_of(model)
    accuracy = (scores.argmax(1) == labels).float().mean().item()
    logging.info("toy: seed %d: accuracy %.3f on %d test images", seed, accuracy, len(images))
    with bar(len(COMPARED) * len(images), f"toy fine-tune, seed {seed}") as progress:
        for name in COMPARED:
            logits[name], steps[name], parts = [], [], []
            for i in range(len(images)):
                one = slice(i, i + 1)
                copied, n_steps, logit = _finetuned(args, net, images[one], int(labels[i]), name)
                parts.append(ratios_of(copied, one))
                logits[name].append(logit)
                steps[name].append(n_steps)
                progress.update()
            ratios[name] = torch.cat(parts)
    return {
        "accuracy": accuracy,
        "regions": REGIONS,
        "thresholds": _thresholds(args),
        "logits": {name: round(float(np.median(values)), 4) for name, values in logits.items()},
        "steps": {name: float(np.mean(values)) for name, values in steps.items()},
        "hgr": {name: value.mean(0).double().cpu().numpy().round(6).tolist() for name, value in ratios.items()},
    }


def _thresholds(args: argparse.Namespace) -> list[float]:
    """Those at which HGR is stored, so that another choice among them costs nothing."""
    return sorted({*THRESHOLDS, args.toy_threshold})


def _untrained(seed: int) -> ToyNet:
    """The network of a seed before its training."""
    torchutils.seed_everything(seed)
    return ToyNet(len(DIGITS))


def _trained(args: argparse.Namespace, seed: int, device: torch.device) -> ToyNet:
    """The network of a seed, trained with sigmoid and cross entropy."""
    pictures = make_pictures("train", args.toy_train, MARKED, seed, args.mnist_root)
    net = _untrained(seed).to(device)
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


def _finetuned(args: argparse.Namespace, net: ToyNet, image: torch.Tensor, label: int, name: str):
    activation, factor = COMPARED[name]
    return finetune(net, image, label, activation, factor * args.toy_rib_lr, args.toy_rib_iter, args.toy_stop_th)


def _draw(args: argparse.Namespace, folder: Path, seed: int, curves: dict[str, np.ndarray]) -> None:
    """The three figures, the first two of the first seed."""
    train = make_pictures("train", min(args.toy_train, 80), MARKED, seed, args.mnist_root)
    test = make_pictures("test", min(args.toy_test, 20), 1.0, seed, args.mnist_root)
    net = ToyNet(len(DIGITS))
    weights.load(net, folder / f"seed_{seed}.pth")
    images, labels, _ = _tensors(test, torch.device("cpu"))
    rows = {}  # (index of the picture, what was done to the network) -> G_1..G_6
    for i in range(min(EXAMPLES, len(test))):
        one, label = images[i : i + 1], labels[i : i + 1]
        copied, *_ = _finetuned(args, net, one, int(label), "none")
        for title, model in (("trained with sigmoid", net), ("fine-tuned, no activation", copied)):
            rows[i, title] = gradient_maps(model, one, label)[0, :LAYERS].numpy()
    plots.save(plots.toy_dataset(train, test), folder / "dataset")
    plots.save(plots.toy_gradients(test, rows), folder / "gradients")
    plots.save(plots.toy_curves(curves, args.toy_threshold), folder / "curves")


def _tensors(pictures: Pictures, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images float32 [n, 1, H, W] in [0, 1], labels int64 [n], regions uint8 [n, H, W]."""
    images = torch.from_numpy(pictures.images)[:, None].float() / 255
    parts = images, torch.from_numpy(pictures.labels), torch.from_numpy(pictures.regions)
    return tuple(part.to(device) for part in parts)


def _made_by(args: argparse.Namespace, seed: int) -> dict:
    """The record of what makes a seed; the threshold is chosen among those stored."""
    apart = ("toy_pass", "toy_seeds", "toy_threshold")
    values = {key: value for key, value in vars(args).items() if key.startswith("toy_") and key not in apart}
    arguments = {"seed": seed, "mnist_root": str(args.mnist_root), **values}
    return {"arguments": arguments, "inputs": {}, "code": code_version()}
