"""The list of mutations: a guard's file, its text, the text without it, and the test that notices."""

from __future__ import annotations

from tests.mutations.foreign import FOREIGN
from tests.mutations.mutation import Mutation
from tests.mutations.projects import PROJECTS

M = Mutation
LEAKS = "tests/stages/test_leaks.py"
VERIFY, LEDGER, PUBLISH = "tests/stages/test_verify.py", "tests/live/test_ledger.py", "tests/live/test_archive.py"
MUTATIONS = (
    # masks
    M(
        "pipeline/verification/blocks.py",
        "np.isfinite(actual) & complete,",
        "np.isfinite(actual),",
        f"{VERIFY}::test_cells_without",
    ),
    M(
        "pipeline/verification/blocks.py",
        "complete.all(axis=2)",
        "complete.any(axis=2)",
        f"{VERIFY}::test_a_hole_in_one_member",
    ),
    M(
        "pipeline/verification/blocks.py",
        "    if missing.any():",
        "    if False:",
        f"{VERIFY}::test_a_hole_in_a_forecast",
    ),
    M(
        "pipeline/forecasting/losses.py",
        "weights * errors, 0.0).sum() / valid.sum().clamp(min=1)",
        "weights * errors, 0.0).mean()",
        "tests/forecasting/test_losses.py::test_by_hand_over_valid_cells",
    ),
    M(
        "pipeline/forecasting/losses.py",
        "return torch.where(target.isfinite(), target, 0.0)",
        "return target",
        "tests/forecasting/test_losses.py::test_missing_cells_carry_no_gradient",
    ),
    M(
        "pipeline/live/cycle.py",
        "(~np.isfinite(members) & observed).sum()",
        "0",
        "tests/live/test_cycle.py::test_values_that_are_not_finite",
    ),
    # tiles
    M(
        "pipeline/forecasting/tiling.py",
        "weights[here] += weight",
        "weights[here] += 1",
        "tests/forecasting/test_tiling.py::test_blending_leaves_agreeing_tiles",
    ),
    M(
        "pipeline/forecasting/tiling.py",
        "(distance / (overlap + 1)).clamp(max=1.0)",
        "torch.ones_like(distance, dtype=torch.float32)",
        "tests/forecasting/test_tiling.py::test_ramp_by_hand",
    ),
    M(
        "pipeline/forecasting/tiling.py",
        "-(-(size - overlap) // (tile - overlap))",
        "-(-size // tile)",
        "tests/forecasting/test_tiling.py::test_tiles_cover_and_overlap",
    ),
    # gaps, and what a model learns from
    M(
        "pipeline/config/read.py",
        "if later.start - split.end < gap:",
        "if False:",
        "tests/config/test_config.py::test_gap_between_splits",
    ),
    M(
        "pipeline/config/data.py",
        "if self.test.start <= latest:",
        "if False:",
        "tests/config/test_config.py::test_bad_value_is_one_line",
    ),
    M(
        "pipeline/datasets/preparation/splits.py",
        " & (in_horizon <= options.max_missing_horizon)",
        "",
        "tests/stages/test_prepare.py::test_init_times_need_complete_history_and_horizon",
    ),
    M(
        "pipeline/prepare.py",
        "slice(train.start, train.end + reach)",
        "slice(train.start, None)",
        "tests/stages/test_prepare.py::test_test_period_reaches_neither",
    ),
    M(
        "pipeline/datasets/preparation/learned.py",
        'SPLITS = ("train", "validation")',
        'SPLITS = ("train", "validation", "test")',
        "tests/stages/test_prepare.py::test_the_digest_is_of_what_models_learn_from",
    ),
    M(
        "pipeline/training/validation.py",
        'init_times = read_init_times(PREPARED / "init_times.csv", "validation")',
        'init_times = read_init_times(PREPARED / "init_times.csv", "train")',
        "tests/stages/test_calibration_period.py",
    ),
    # the test period
    M(
        "pipeline/prepare.py",
        "climatology = fit_climatology(training, names, options)",
        "climatology = fit_climatology(observations, names, options)",
        f"{LEAKS}::test_prepared_data",
    ),
    M(
        "pipeline/prepare.py",
        "statistics = statistics_of(observations, training,",
        "statistics = statistics_of(observations, observations,",
        f"{LEAKS}::test_prepared_data",
    ),
    M(
        "pipeline/training/fit.py",
        'self.training = self._dataset("train",',
        'self.training = self._dataset("test",',
        f"{LEAKS}::test_samples",
    ),
    M(
        "pipeline/training/fit.py",
        'self.validation = self._dataset("validation",',
        'self.validation = self._dataset("test",',
        f"{LEAKS}::test_samples",
    ),
    M(
        "pipeline/training/references.py",
        'if init_times is None:\n        init_times = read_init_times(PREPARED / "init_times.csv", "train")',
        'if init_times is None:\n        init_times = read_init_times(PREPARED / "init_times.csv", "test")',
        f"{LEAKS}::test_trained",
    ),
    M(
        "pipeline/training/validation.py",
        '"validation"), SHARE_TIMES)\n    errors',
        '"test"), SHARE_TIMES)\n    errors',
        f"{LEAKS}::test_choice_of_a_base",
    ),
    M(
        "pipeline/training/validation.py",
        '"validation"), SHARE_TIMES)\n    everywhere',
        '"test"), SHARE_TIMES)\n    everywhere',
        f"{LEAKS}::test_trained",
    ),
    M(
        "pipeline/training/validation.py",
        "init_times = thinned(init_times, CALIBRATION_TIMES)",
        'init_times = read_init_times(PREPARED / "init_times.csv", "test")',
        f"{LEAKS}::test_trained",
    ),
    # fences
    M(
        "pipeline/live/archive/recovery.py",
        "    if ledger.fact(SEEN) != _changed_at(folder):",
        "    if ledger.fact(SEEN) is None:",
        "tests/live/test_recovery.py::test_forecasts_are_compared",
    ),
    M(
        "pipeline/live/cycle.py",
        "    ledger.is_orderly = False\n",
        "",
        "tests/live/test_cycle.py::test_what_a_failed_cycle",
    ),
    M(
        "pipeline/live/archive/ledger.py",
        "        if since and init_time < since:",
        "        if False:",
        f"{LEDGER}::test_the_wait_for_verification",
    ),
    M(
        "pipeline/live/archive/ledger.py",
        "if fenced and (newest",
        "if False and (newest",
        f"{LEDGER}::test_only_the_newest_token_may_write",
    ),
    M(
        "pipeline/datasets/atomic.py",
        "    if target.exists():",
        "    if False:",
        "tests/datasets/test_atomic.py::test_rename_takes_no_name",
    ),
    M(
        "pipeline/live/archive/publish.py",
        "            _read_back(staging, forecast)\n",
        "",
        f"{PUBLISH}::test_a_disk_that_gives_back",
    ),
    # syncs
    M(
        "pipeline/live/archive/publish.py",
        "            fsync_tree(staging)\n",
        "",
        f"{PUBLISH}::test_the_disk_knows_each_step",
    ),
    M(
        "pipeline/datasets/atomic.py",
        "        fsync_tree(partial)\n",
        "",
        "tests/datasets/test_atomic.py::test_everything_is_synced_before_it_gets_its_name",
    ),
    M(
        "pipeline/datasets/atomic.py",
        "        os.fsync(file.fileno())\n",
        "",
        "tests/datasets/test_atomic.py::test_a_file_is_on_the_disk_before_its_name",
    ),
    M(
        "pipeline/datasets/atomic.py",
        "        folder.mkdir(exist_ok=True)\n        fsync_folder(folder.parent)\n",
        "        folder.mkdir(exist_ok=True)\n",
        "tests/datasets/test_atomic.py::test_every_new_folder",
    ),
    # digests
    M(
        "pipeline/live/archive/publish.py",
        "if manifest_sha256 is not None and sha256 != manifest_sha256:",
        "if False:",
        f"{PUBLISH}::test_added_or_swapped_files",
    ),
    M(
        "pipeline/datasets/manifest.py",
        "sorted(present ^ set(files))",
        "sorted(set(files) - present)",
        f"{PUBLISH}::test_added_or_swapped_files",
    ),
    M(
        "pipeline/datasets/manifest.py",
        "if (got := facts(content)) != expected:",
        "if (got := None) is not None:",
        f"{PUBLISH}::test_no_flipped_bit_in_a_forecast",
    ),
    M(
        "pipeline/datasets/manifest.py",
        "if (found := digest(content)) != expected:",
        "if (found := None) is not None:",
        f"{PUBLISH}::test_no_flipped_bit_in_the_catalogue",
    ),
    M(
        "pipeline/live/archive/database.py",
        "if not is_whole(row, *chained):",
        "if False:",
        f"{LEDGER}::test_no_flipped_bit_goes_unnoticed",
    ),
    # bytes and seconds of a feed, limits of live values
    M(
        "pipeline/live/feed/poll.py",
        "        if of_file > most:",
        "        if False:",
        "tests/live/test_feed.py::test_one_look_downloads",
    ),
    M(
        "pipeline/live/feed/poll.py",
        "        if now > self._files_end - opening * self._third / 2:",
        "        if False:",
        "tests/live/test_observations.py::test_files_that_take_long_together",
    ),
    M(
        "pipeline/live/feed/segments.py",
        "        if reason := self._aside_reason(candidate):",
        "        if reason := None:",
        "tests/live/test_observations.py::test_a_file_that_takes_long",
    ),
    M(
        "pipeline/live/feed/fetch.py",
        "reason = beyond(values, self._limits)",
        "reason = None",
        "tests/live/test_limits.py::test_a_frame_that_no_radar",
    ),
    M(
        "pipeline/live/feed/store.py",
        "            dict(self._rules.values),\n",
        "",
        "tests/live/test_limits.py::test_limits_of_one_s_own",
    ),
    M(
        "pipeline/live/deployed_model.py",
        "for part in (checkpoint.CONFIG, manifest.MANIFEST))",
        "for part in (checkpoint.CONFIG,))",
        "tests/live/test_cycle.py::test_a_damaged_checkpoint",
    ),
    # clocks
    M(
        "pipeline/live/timekeeping.py",
        "(self.since(last) or timedelta()) + AHEAD",
        "timedelta(days=9999)",
        "tests/live/test_timekeeping.py::test_a_clock_that_is_wrong",
    ),
    M(
        "pipeline/live/timekeeping.py",
        "return behind >= -NOTED",
        "return True",
        "tests/live/test_timekeeping.py::test_a_feed_that_confirms",
    ),
    M(
        "pipeline/live/timekeeping.py",
        "        _take_back(ledger, look.at)\n",
        "",
        "tests/live/test_timekeeping.py::test_what_a_believed_future",
    ),
    # copies
    M(
        "pipeline/live/post_cycle.py",
        "if has_copy(folder / COPIES, path.stem, kind) or ",
        "if ",
        "tests/live/test_copies.py::test_every_forecast_of_a_catch_up",
    ),
    M(
        "pipeline/live/post_cycle.py",
        "            publish.check(path, row.manifest_sha256)\n",
        "",
        "tests/live/test_copies.py::test_a_damaged_forecast_has_no_copy",
    ),
    # the rule of promotion, and who may be compared
    M(
        "pipeline/evaluation/promotion.py",
        'if difference.word == "better"]',
        'if difference.word != "worse"]',
        "tests/evaluation/test_promotion.py",
    ),
    M(
        "pipeline/evaluation/promotion.py",
        "left_out = {**learnt_on(sums), **(excluded or {})}",
        "left_out = dict(excluded or {})",
        "tests/forecasting/test_online.py::test_a_model_that_learnt_on_is_not_promoted",
    ),
    M(
        "pipeline/evaluation/guards.py",
        "worst = max(defined,",
        "worst = min(defined,",
        "tests/evaluation/test_guards.py::test_mean_errors_of_opposite_sign",
    ),
    M(
        "pipeline/evaluation/comparability.py",
        "if any(not np.array_equal(own[variable], standard[variable]) for variable in variables):",
        "if False:",
        "tests/evaluation/test_comparability.py::test_equal_numbers_of_other_cells",
    ),
    # units and axes
    M(
        "pipeline/datasets/signature.py",
        "if found.units[name] != units:",
        "if False:",
        "tests/datasets/test_signature.py::test_the_first_difference",
    ),
    M(
        "pipeline/datasets/signature.py",
        "if found.cells != expected.cells:",
        "if False:",
        "tests/datasets/test_signature.py::test_the_first_difference",
    ),
    M(
        "pipeline/sources/missing.py",
        "refused = bad & ~np.isnan(array)",
        "refused = bad",
        "tests/sources/test_cases_values.py::test_gaps_are_not_refused",
    ),
    M(
        "pipeline/datasets/preparation/ranges.py",
        "self.low < -NOISE * floor or (dry and self.low >= floor)",
        "False",
        "tests/cli/test_check_amounts.py::test_decibels_of_fields_that_are_no_rain",
    ),
    M(
        "pipeline/datasets/geolocation.py",
        "(crs is None or not crs.is_derived)",
        "True",
        "tests/report/test_coastlines.py::test_rotated_poles",
    ),
    M(
        "pipeline/training/amounts.py",
        "ratio > SQUARE",
        "False",
        "tests/cli/test_check_amounts.py::test_a_cascade_needs_square_cells",
    ),
    M(
        "pipeline/sources/accumulations.py",
        "if len(bounded) < len(options.variables) and not np.array_equal(ends, frames.times, equal_nan=True):",
        "if False:",
        "tests/sources/test_accumulations.py::test_sums_beside_variables",
    ),
    M(
        "pipeline/datasets/finite.py",
        "    if bad.any():",
        "    if False:",
        "tests/datasets/test_finite.py::test_an_infinite_value",
    ),
    M(
        "pipeline/datasets/frames.py",
        "            refuse_infinite(",
        "            print(",
        "tests/stages/test_forecast.py::test_no_forecast_from_an_infinity",
    ),
    M(
        "pipeline/forecasting/dataset.py",
        "bad = seen & ~np.isfinite(fields)",
        "bad = seen & False",
        "tests/stages/test_forecast.py::test_a_forecast_that_is_no_number",
    ),
    M(
        "pipeline/verification/sums_file.py",
        "        require_finite(",
        "        print(",
        f"{VERIFY}::test_sums_that_are_no_numbers",
    ),
    M(
        "pipeline/sources/target.py",
        "if units != expected:",
        "if False:",
        "tests/sources/test_target.py",
    ),
    M(
        "pipeline/datasets/grid.py",
        "np.asarray(cosine / cosine.mean())",
        "np.ones_like(cosine)",
        f"{VERIFY}::test_cells_of_degrees",
    ),
    M(
        "pipeline/forecasting/normaliser.py",
        "values.clamp(channel.valid_min, channel.valid_max) if limited else values",
        "values",
        "tests/forecasting/test_normaliser.py::test_one_mean",
    ),
    # valid times, stores
    M(
        "pipeline/datasets/schema.py",
        "if not (forecasts[VALID_TIME] == forecasts[INIT_TIME] + forecasts[LEAD_TIME]).all():",
        "if False:",
        "tests/datasets/test_schema.py",
    ),
    M(
        "pipeline/datasets/store.py",
        "valid_times = init_times[:, None] + lead_times[None, :]",
        "valid_times = init_times[:, None] + 0 * lead_times[None, :]",
        "tests/datasets/test_store.py::test_forecasts_round_trip",
    ),
    M(
        "pipeline/datasets/store.py",
        '"_FillValue": np.float32("nan"),',
        '"_FillValue": np.float32(0),',
        "tests/datasets/test_store.py::test_zero_is_a_value",
    ),
    M(
        "pipeline/datasets/store.py",
        "if start % shard or (stop % shard and stop != length) or stop > length:",
        "if stop > length:",
        "tests/datasets/test_store.py::test_blocks_across_shards",
    ),
    M(
        "pipeline/datasets/frames.py",
        "if not np.array_equal(axis[",
        "if False and not np.array_equal(axis[",
        "tests/training/test_samples.py::test_init_time_off_the_axis",
    ),
    M(
        "pipeline/live/schedule.py",
        "(moment - EPOCH - self.phase) % self.every",
        "(moment - EPOCH) % self.every",
        "tests/live/test_schedule.py::test_floor",
    ),
    M(
        "pipeline/training/samples.py",
        "self.epoch = epoch if self.shuffle else 0",
        "self.epoch = 0",
        "tests/training/test_samples.py::test_every_epoch",
    ),
    # what comes from outside
    M(
        "pipeline/config/yaml_file.py",
        "if key.value in lines:",
        "if False:",
        "tests/config/test_yaml_file.py::test_a_key_that_stands_twice",
    ),
    M(
        "pipeline/config/yaml_file.py",
        "if self.depth > MAX_DEPTH:",
        "if False:",
        "tests/config/test_yaml_file.py::test_what_is_no_plain_yaml",
    ),
    M(
        "pipeline/config/read.py",
        "not NAME.fullmatch(name)",
        "not NAME.match(name)",
        "tests/config/test_config.py::test_bad_value_is_one_line",
    ),
    M(
        "pipeline/config/section.py",
        "frozen=True, allow_inf_nan=False",
        "frozen=True",
        "tests/config/test_config.py::test_bad_value_is_one_line",
    ),
    M("pipeline/errors.py", 'OF_ADDRESS.sub("", text)', "text", "tests/test_errors.py"),
    M("pipeline/sources/declared.py", "if number not in FILTERS:", "if False:", "tests/sources/test_declared.py"),
    M(
        "pipeline/sources/declared.py",
        "if isinstance(link, h5py.ExternalLink):",
        "if False:",
        "tests/sources/test_declared.py",
    ),
    # options that are gone
    M(
        "pipeline/config/renamed.py",
        "for path, instead in GONE.items():",
        "for path, instead in ():",
        "tests/config/test_config.py::test_bad_value_is_one_line",
    ),
    # several training processes
    M(
        "pipeline/config/training.py",
        'strategy.startswith("fsdp")',
        "False",
        "tests/config/test_config.py::test_bad_value_is_one_line",
    ),
    M(
        "pipeline/train.py",
        "int(environment.get(name) or 0) for name in RANKS",
        'int(environment.get(name) or 0) for name in ("LOCAL_RANK", "NODE_RANK")',
        "tests/stages/test_train.py::test_one_of_several_processes",
    ),
    M(
        "pipeline/train.py",
        "    while not holds(folder, fingerprint):",
        "    while False:",
        "tests/stages/test_train.py::test_other_processes_wait",
    ),
    # records of an outage
    M(
        "pipeline/tracking/outbox.py",
        "passed_over = ask(partial(has_already, client, run_id, record))",
        "passed_over = False",
        "tests/tracking/test_outage.py::test_what_a_run_has_is_passed_over",
    ),
    M(
        "pipeline/tracking/comparison.py",
        "run.begin(SCORES_TAG, digest, renew=True)",
        "run.begin(SCORES_TAG, digest)",
        "tests/tracking/test_outage.py::test_a_second_comparison",
    ),
    M(
        "pipeline/tracking/patience.py",
        "_waited += max(time.monotonic() - started - seconds, 0.0)",
        "_waited += 0.0",
        "tests/tracking/test_outage.py::test_slow_answers_use_up",
    ),
    *FOREIGN,
    *PROJECTS,
)
SURVIVORS: frozenset[str] = frozenset()  # files and old texts of guards without which every test passes
