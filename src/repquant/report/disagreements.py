"""Disagreements in the words of a record."""

from collections.abc import Callable, Mapping, Sequence

from repquant.data.loading import Example
from repquant.evaluate.disagreement import Disagreement
from repquant.report.record import DisagreementRecord


def disagreement_records(
    found: Mapping[str, Sequence[Disagreement]], examples: Mapping[int, Example], class_name: Callable[[int], str]
) -> tuple[DisagreementRecord, ...]:
    """Name the images and the classes.

    Args:
        found: calibrator -> images on which its model disagrees with the float one.
        examples: place of an image -> the image.
        class_name: of a class.
    """
    return tuple(
        DisagreementRecord(
            calibrator=calibrator,
            image=examples[each.position].name,
            label=examples[each.position].label,
            kl=each.kl,
            float_answer=class_name(each.float_class),
            float_probability=each.float_probability,
            answer=class_name(each.quantized_class),
            probability=each.quantized_probability,
        )
        for calibrator, disagreements in found.items()
        for each in disagreements
    )
