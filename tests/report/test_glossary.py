import pytest

from fieldcast.pipeline.report.glossary import GLOSSARY, score_title


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("rmse", "RMSE"),
        ("coverage_90", "Coverage of the 90 % interval"),
        ("effective_resolution_km", "Effective resolution, km"),
        ("csi_0.5_mm_h", "CSI ≥ 0.5 mm/h"),
        ("frequency_bias_273_k", "Frequency bias ≥ 273 K"),
        ("brier_-5_c", "Brier score ≥ -5 c"),
        ("fss_1_mm_h_10_km", "FSS ≥ 1 mm/h, 10 km"),
        ("fss_0.5_10_km", "FSS ≥ 0.5, 10 km"),
        ("rain_rate/csi_1e-05_mm", "rain rate: CSI ≥ 1e-05 mm"),
        ("something_new", "something new"),
    ],
)
def test_keys_are_written_for_people(key: str, title: str) -> None:
    assert score_title(key) == title


def test_every_score_is_explained_once() -> None:
    keys = [term.key for term in GLOSSARY]
    assert len(set(keys)) == len(keys)
    assert all(term.formula and term.perfect and term.averaging for term in GLOSSARY)
