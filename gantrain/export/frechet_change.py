"""What lower precision does to a generator's Frechet distance, held against its own spread."""

import dataclasses
import logging
import statistics
from functools import partial

from gantrain.data.bad_data import DatasetError
from gantrain.errors import RunError
from gantrain.evaluation.distances import frechet_distance
from gantrain.evaluation.evaluate import choose_space, labels_as_in_data, sample
from gantrain.evaluation.examples import FEWEST, choose_reals, load_real_data
from gantrain.evaluation.yardstick import collect_looks, in_chunks
from gantrain.sampling import RunGenerator, Sampler, open_session, run_sampler, sample_session

logger = logging.getLogger(__name__)

_REPEATS = 3  # disjoint sets of seeds, the fewest that have a spread worth the name


def frechet_change(
    run: RunGenerator, artifact: bytes, samples: int
) -> dict[str, float | int | str] | None:
    """Measure run and artifact on the same seeds, against the data that the run was trained on.

    Args:
        run: the run, as the artifact was made of it; a run that goes on has newer ones.
        artifact: made of it.
        samples: of each of three sets of seeds, and as many real examples; fewer where the data
            allow no more.

    Returns:
        The fields of docs/artifact.md; None where the data are not at hand, which is logged.
    """
    whole = run_sampler(run)
    source = str(whole.settings["data"])
    try:
        data = load_real_data(source, whole)
        if not data.trained_on:
            raise RunError("they are not those that the run was trained on")
        reals = choose_reals(data, None)
    except (DatasetError, RunError, OSError) as error:
        logger.warning("the change of the Frechet distance is left out: data %s: %s", source, error)
        return None
    references = reals.reference[: max(samples, FEWEST)]  # the reals are in random order
    count = len(references)
    space = choose_space(data, None)
    reference = collect_looks(in_chunks(references), space, None)
    labels = labels_as_in_data(whole, data, count * _REPEATS)

    def distances(sampler: Sampler) -> list[float]:
        found = []
        for first in range(0, count * _REPEATS, count):
            seen = collect_looks(sample(sampler, range(first, first + count), labels), space, None)
            found.append(frechet_distance(reference.features, seen.features))
        return found

    session = open_session(artifact)
    reduced = dataclasses.replace(whole, generate=partial(sample_session, session))
    logger.info("measuring the Frechet distance of 2 x %d x %d samples", _REPEATS, count)
    was, became = distances(whole), distances(reduced)
    return {
        "fp32": statistics.fmean(was),
        "exported": statistics.fmean(became),
        "change": statistics.fmean(became) - statistics.fmean(was),
        "seed_spread": statistics.stdev(was),
        "samples": count,
        "repeats": _REPEATS,
        "features": space.kind,
    }
