"""`slimkit quantize`."""

import typer

from slimkit.cli.command import command
from slimkit.cli.inspect import layers_table
from slimkit.cli.options import device_flag
from slimkit.cli.output import Output
from slimkit.cli.stage import show_stage
from slimkit.cli.values import weight_bits
from slimkit.core.options import QuantizeOptions


@command(
    QuantizeOptions,
    example="slimkit quantize runs/distill --scheme dynamic",
    scheme=typer.Option("--scheme", help="static: activation ranges from training images; dynamic: from each input."),
    calibration=typer.Option("--calibration", help="How static ranges are chosen from the values that were seen."),
    calibration_images=typer.Option("--calibration-images", help="Training images that the static ranges come from."),
    weight_bits=typer.Option(
        "--weight-bits",
        parser=weight_bits,
        metavar="BITS",
        help="2, 3, 4, 5, 6 or 8, of which the first and the last layer keep 8. auto: for each layer its own, as few "
        "as --max-size asks for, where that costs least.",
    ),
    max_size=typer.Option(
        "--max-size", metavar="SIZE", help="What the weights file may take with --weight-bits auto, such as 2MB."
    ),
    compress_weights=typer.Option(
        "--compress-weights/--no-compress-weights",
        help="Store the weights coded by their frequencies: the smallest file with the same answers, decoded once when "
        "it is loaded. Without it: one to a byte, of 4 bits two.",
    ),
    reduce_range=typer.Option(
        "--reduce-range/--no-reduce-range",
        help="Keep weights to 7 bits, so that no sum saturates on x86 CPUs without VNNI. Without it: where this CPU is "
        "one.",
    ),
    qat_epochs=typer.Option(
        "--qat-epochs", help="Epochs of fine-tuning through the rounding, with the float model as the teacher."
    ),
    device=device_flag("Where to compute the fine-tuning; the rest is computed on the CPU."),
    max_drop=typer.Option(
        "--max-drop", help="Points of accuracy that may be lost: the costliest layers stay in float until it holds."
    ),
    min_agreement=typer.Option(
        "--min-agreement",
        help="% of the calibration images to which the int8 model must give the float model's answer, else exit code "
        "3. The default lets pass a model that hardly learned: its answers are near ties, and many of them change.",
    ),
)
def quantize(options: QuantizeOptions, output: Output) -> None:
    """Turn every convolution and linear layer to int8, and write the submission."""
    from slimkit.core.stages import run_quantize

    result = run_quantize(options, output.progress)
    bits = {"weight_bits": result.architecture.weight_bits}
    tables = [layers_table(result.architecture)] if options.weight_bits == "auto" else []
    show_stage("quantize", options, result, output, bits, tables)
