"""Mutations of what guards the project against the files of others."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M = Mutation
COORDINATES, ACCUMULATIONS = "tests/sources/test_coordinates.py", "tests/sources/test_accumulations.py"
DECODER, DECLARED = "tests/sources/test_decoder.py", "tests/sources/test_declared.py"
FOREIGN = (
    M(
        "pipeline/sources/decoder.py",
        "if not self._connection.poll(seconds):",
        "if False:",
        f"{DECODER}::test_a_child_that_takes_long_is_ended",
    ),
    M(
        "pipeline/sources/decoder.py",
        "with _slots.setdefault(os.getpid(), Semaphore(MOST_CHILDREN)):",
        "if True:",
        f"{DECODER}::test_a_process_has_no_more_children",
    ),
    M(
        "pipeline/sources/decoder.py",
        "int(megabytes * 2**20)",
        "2**40",
        f"{DECODER}::test_what_goes_wrong_in_a_child",
    ),
    M(
        "pipeline/sources/decoder.py",
        "resource.setrlimit(resource.RLIMIT_AS, (hard, hard))",
        "pass",
        f"{DECODER}::test_a_bound_of_memory_ends_with_its_file",
    ),
    M(
        "pipeline/sources/decoder.py",
        "signal.alarm(ceil(seconds) + 1)",
        "signal.alarm(0)",
        f"{DECODER}::test_a_child_whose_parent_is_gone",
    ),
    M(
        "pipeline/sources/declared.py",
        'if codec.removeprefix("numcodecs.") not in CODECS',
        "if False",
        f"{DECLARED}::test_a_store_packed_by_code_is_refused",
    ),
    M(
        "pipeline/datasets/signature.py",
        "max(abs(latitude - wanted_y), abs(turned)) > DEGREES_OFF",
        "False",
        f"{COORDINATES}::test_a_model_of_cells_that_lie_elsewhere",
    ),
    M(
        "pipeline/sources/coordinates.py",
        "if not np.array_equal(fields, np.broadcast_to(fields[0], fields.shape), equal_nan=True):",
        "if False:",
        f"{COORDINATES}::test_latitudes_and_longitudes_that_wrf_has",
    ),
    M(
        "pipeline/live/feed/fetch.py",
        "elif (content := frame_file.digest(values)) not in self._aside:",
        "elif (content := frame_file.digest(values)):",
        "tests/live/test_feed.py::test_an_impossible_frame_of_a_zarr_store",
    ),
    M(
        "pipeline/live/feed/segments.py",
        "if tries == TRIES else []\n",
        "if False else []\n",
        "tests/live/test_feed.py::test_a_zarr_store_that_cannot_be_read",
    ),
    M(
        "pipeline/sources/radar/composites.py",
        "without_impossible(rate[None][frames], (0.0, None))",
        "rate[None][frames], np.zeros(frames.size, int)",
        "tests/sources/test_radar.py::test_values_that_are_none_are_counted",
    ),
    M(
        "pipeline/sources/units.py",
        "if doubtful and dimensions in (LENGTH, WATER):",
        "if False:",
        "tests/sources/test_units.py::test_what_is_none_of_these",
    ),
    M(
        "pipeline/sources/units.py",
        "if doubtful and units not in DECIBELS:",
        "if False:",
        "tests/sources/test_units.py::test_what_is_none_of_these",
    ),
    M(
        "pipeline/sources/radar/odim.py",
        "if not (abs(x - east) < dx / 2 and abs(y - north) < dy / 2):",
        "if False:",
        "tests/sources/test_odim.py::test_what_is_wrong_is_named",
    ),
    M(
        "pipeline/sources/radar/radolan.py",
        "values & (NO_DATA | CLUTTER)",
        "values & NO_DATA",
        "tests/sources/test_radar_formats.py::test_flags_of_radolan",
    ),
    M(
        "pipeline/sources/grib.py",
        "if options.units_of(name) or not (is_sum or minutes):",
        "if not (is_sum or minutes):",
        f"{ACCUMULATIONS}::test_units_by_the_options",
    ),
    M(
        "pipeline/sources/grib.py",
        "if END in gaps.read(start - end):",
        "if False:",
        f"{ACCUMULATIONS}::test_a_message_whose_beginning",
    ),
    M(
        "pipeline/sources/grib.py",
        "if message.grid != first.grid:",
        "if False:",
        f"{ACCUMULATIONS}::test_messages_of_another_grid",
    ),
    M(
        "pipeline/datasets/grid.py",
        "np.abs(centres).max(initial=0.0) > 90 + POLE_SLACK",
        "False",
        "tests/datasets/test_grid.py::test_latitudes_beyond_the_poles",
    ),
    M(
        "pipeline/sources/missing.py",
        'or not np.isfinite(number) or (key[0] == "s" and number == 0)',
        "",
        "tests/sources/test_cases_values.py::test_packing_and_limits",
    ),
    M(
        "pipeline/sources/grib.py",
        "    if not rates:",
        "    if False:",
        f"{ACCUMULATIONS}::test_a_sum_of_unknown_period",
    ),
    M(
        "pipeline/sources/accumulations.py",
        'attributes.get("GRIB_stepType") == "accum" or of_ecmwf',
        "False",
        f"{ACCUMULATIONS}::test_precipitation_as_the_climate_data_store",
    ),
    M(
        "pipeline/sources/valid_time.py",
        'if moment.calendar == "julian"',
        "if False",
        "tests/sources/test_cases_times.py::test_every_calendar_is_read",
    ),
)
