"""The tables of docs/cost.md, and the arithmetic behind them; see dev/measure_cost.py."""

from tabulate import tabulate

# Rates of hardware as its vendors state them, times what is usually reached of them. Nobody has
# measured them here.
ASSUMED = {
    # A100: 312 TFLOP/s in bf16, of which transformers of this size reach 40 %; 19.5 in float32.
    "bf16_flops": 0.4 * 312e12,
    "fp32_flops": 0.6 * 19.5e12,
    # HBM2e: 2.0 TB/s, 80 % of it.
    "gpu_bytes": 0.8 * 2.0e12,
    # NVLink 3 as NCCL's "bus bandwidth" of an all-reduce on 8 GPUs.
    "inside_bytes": 230e9,
    # Of a node: eight adapters of 200 Gb/s, or one of 100 Gb/s, 80 % of it.
    "fast_bytes": 0.8 * 8 * 25e9,
    "slow_bytes": 0.8 * 12.5e9,
    # COCO's train2014: 13 GB for 82,783 photos.
    "photo_bytes": 13e9 / 82783,
    # What one process receives from the others by gloo.
    "gather_bytes": 1e9,
}
SAMPLES_PER_GPU, GPUS_PER_NODE, PAPER_BATCH = 16, 8, 128
# Of gRefCOCO: expressions to learn from, and those of val, testA and testB.
TRAIN_ITEMS, TEST_ITEMS = 209344, 16870 + 18712 + 14933


def at_320(content):
    """The row of the size that the configs have."""
    return next(row for row in content["size"]["rows"] if row["size"] == [320, 320])


def scale(content, gpus, samples_per_gpu=SAMPLES_PER_GPU, network="fast"):
    """What a training step asks of each part; all by arithmetic.

    Args:
        content: of the JSON file.
        gpus: in all; nodes have ``GPUS_PER_NODE``.
        samples_per_gpu: of a step.
        network: "fast" or "slow", between nodes.

    Returns:
        dict of numbers; seconds are those of a step.
    """
    gradient_bytes = 4 * content["model"]["parameters"]
    # Forward, and twice as much for gradients of inputs and weights.
    compute = samples_per_gpu * 3e9 * at_320(content)["gflop"] / ASSUMED["bf16_flops"]
    # Weights, gradients and the three averages of AMSGrad are read, all but gradients written.
    optimizer = 9 * gradient_bytes / ASSUMED["gpu_bytes"]
    # A ring moves 2 (n - 1) / n of all bytes past each point, as fast as the slowest of them.
    inside = gpus <= GPUS_PER_NODE
    rate = ASSUMED["inside_bytes" if inside else f"{network}_bytes"]
    reduce = 2 * (gpus - 1) / gpus * gradient_bytes / rate
    # It is hidden behind the backward pass, two thirds of the computing.
    step = compute + optimizer + max(0.0, reduce - 2 / 3 * compute)
    photo = next(row for row in content["photo"]["rows"] if row["photo"] == "480x640")
    samples = samples_per_gpu / step
    bytes_per_gpu = samples * ASSUMED["photo_bytes"]
    return {
        "batch": round(gpus * samples_per_gpu),
        "compute": compute,
        "optimizer": optimizer,
        "all_reduce": reduce,
        "step": step,
        "computing": compute / step,
        "samples_per_gpu": samples,
        "workers_per_gpu": samples * photo["cpu_seconds"],
        "photos_per_node": min(gpus, GPUS_PER_NODE) * bytes_per_gpu,
        "photos": gpus * bytes_per_gpu,
        "steps_per_epoch": TRAIN_ITEMS / (gpus * samples_per_gpu),
        "epoch_seconds": TRAIN_ITEMS / (gpus * samples),
    }


def evaluation(content, gpus):
    """Seconds and bytes of an evaluation of gRefCOCO's three splits, by arithmetic."""
    (row,) = content["evaluator"]["rows"]
    share = TEST_ITEMS / gpus
    moved = TEST_ITEMS * (gpus - 1) / gpus * row["record_bytes"]
    return {
        "network": share * 1e9 * at_320(content)["gflop"] / ASSUMED["fp32_flops"],
        "evaluator": share * row["parts"]["records"],
        "summary": TEST_ITEMS * row["parts"]["summary"],
        "bytes": moved,
        "gather": moved / ASSUMED["gather_bytes"],
    }


def tables(content):
    """{name: table in Markdown} of all curves."""
    return {name: make(content) for name, make in TABLES.items()}


def _markdown(headers, lines):
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _size_table(content):
    lines = []
    for row in content["size"]["rows"]:
        parts, side = row["parts"], row["size"][0]
        rest = sum(parts.values()) - parts["encoder"] - parts["post-processing"]
        numbers = (parts["encoder"], rest, parts["post-processing"])
        speed = row["gflop"] / row["gemm_gflops"] / sum(parts.values())
        lines.append(
            [f"{side} x {side}", f"{(side // 16) ** 2 + 1}", f"{row['gflop']:.0f}"]
            + [f"{x:.3f}" for x in numbers]
            + [f"{100 * speed:.0f} %", f"{row['peak_mib']:.0f}"]
        )
    headers = ["image", "image tokens", "GFLOP", "encoder s", "neck to heads s"]
    return _markdown([*headers, "post-processing s", "of peak", "peak MiB"], lines)


def _queries_table(content):
    lines = []
    for row in content["queries"]["rows"]:
        parts = row["parts"]
        names = ("query generation", "decoder", "heads", "post-processing")
        number = row.get("variant", "10").split()[-1]
        rest = sum(parts.values()) - sum(parts[name] for name in names)
        lines.append([number, *(f"{parts[name]:.3f}" for name in names), f"{rest:.3f}"])
    return _markdown(["queries", *(f"{name} s" for name in names), "all else s"], lines)


def _batch_table(content):
    rows = content["batch"]["rows"]
    first = rows[0]["cpu_seconds"]
    lines = [
        [f"{row['batch']}", f"{row['cpu_seconds']:.2f}"]
        + [f"{row['cpu_seconds'] / row['batch'] / first:.2f}", f"{row['peak_mib']:.0f}"]
        for row in rows
    ]
    return _markdown(["expressions", "s", "each, of one alone", "peak MiB"], lines)


def _photo_table(content):
    lines = [
        [row["photo"].replace("x", " x "), f"{1e3 * row['cpu_seconds']:.1f}"]
        + [f"{1e3 * row['decode_seconds']:.1f}", f"{1 / row['cpu_seconds']:.0f}"]
        for row in content["photo"]["rows"]
    ]
    headers = ["photo", "ms per sample", "JPEG alone, full size, ms", "samples/s of one worker"]
    return _markdown(headers, lines)


def _processes_table(content):
    lines = []
    for row in content["processes"]["rows"]:
        others = row.get("others", {})
        text = ", ".join(f"{name}: {1e3 * s:.0f} ms" for name, s in others.items()) or "-"
        lines.append([str(row["processes"]), f"{row['cpu_seconds']:.3f}", text])
    return _markdown(["processes", "CPU s per step, each", "exchange alone, in CPU time"], lines)


def _data_table(content):
    lines = [
        [f"{row['expressions']:,}", f"{row['cpu_seconds']:.1f}"]
        + [f"{row['mib']:.0f}", f"{row['worker_mib']:.0f}"]
        for row in content["data"]["rows"]
    ]
    return _markdown(["expressions", "s to load", "MiB", "MiB more per worker"], lines)


def _scale_table(content):
    lines = []
    for gpus in (1, 8, 64, 512):
        fast, slow = (scale(content, gpus, network=name) for name in ("fast", "slow"))
        lines.append([f"{gpus}", f"{fast['batch']}", *_step_cells(fast, slow)])
        lines[-1] += [
            f"{fast['workers_per_gpu']:.1f}", f"{fast['photos_per_node'] / 1e9:.2f}",
            f"{fast['photos'] / 1e9:.1f}", f"{fast['steps_per_epoch']:.0f}",
            f"{fast['epoch_seconds']:.1f}",
        ]  # fmt: skip
    headers = ["GPUs", "batch", *_STEP_HEADERS, "workers per GPU", "photos, GB/s per node"]
    return _markdown([*headers, "in all", "steps per epoch", "s per epoch"], lines)


def _strong_table(content):
    lines = []
    for gpus in (8, 16, 32, 64, 128):
        each = PAPER_BATCH // gpus
        fast, slow = (scale(content, gpus, each, name) for name in ("fast", "slow"))
        cells = [f"{1e3 * fast['optimizer']:.0f}", *_step_cells(fast, slow)]
        lines.append([f"{gpus}", f"{each}", *cells])
    return _markdown(["GPUs", "samples each", "optimizer ms", *_STEP_HEADERS], lines)


_STEP_HEADERS = ["compute ms", "all-reduce ms, fast / slow", "step ms", "computing"]


def _step_cells(fast, slow):
    """Cells of a step on both networks."""
    cells = [f"{1e3 * fast['compute']:.0f}"]
    for key in ("all_reduce", "step"):
        cells.append(" / ".join(f"{1e3 * x[key]:.0f}" for x in (fast, slow)))
    return [*cells, " / ".join(f"{100 * x['computing']:.0f} %" for x in (fast, slow))]


def _evaluation_table(content):
    lines = []
    for gpus in (1, 8, 64, 512):
        x = evaluation(content, gpus)
        cells = [f"{x[key]:.1f}" for key in ("network", "evaluator", "summary")]
        lines.append([f"{gpus}", *cells, f"{x['bytes'] / 1e6:.1f}", f"{x['gather']:.2f}"])
    headers = ["GPUs", "network s, float32", "records s", "summary s, first process alone"]
    return _markdown([*headers, "gathered MB", "gather s"], lines)


TABLES = {
    "size": _size_table,
    "queries": _queries_table,
    "batch": _batch_table,
    "photo": _photo_table,
    "processes": _processes_table,
    "data": _data_table,
    "scale": _scale_table,
    "strong": _strong_table,
    "evaluation": _evaluation_table,
}
