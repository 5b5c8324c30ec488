"""One colour for each model, in every picture and in MLflow."""

# Okabe & Ito (2008): told apart with every common colour blindness
COLOURS = {
    "persistence": "#7f7f7f",
    "climatology": "#b59f00",
    "damped_persistence": "#56b4e9",
    "advection": "#000000",
    "steps": "#009e73",
    "convlstm": "#0072b2",
    "convlstm_quantiles": "#cc79a7",
    "video_transformer": "#d55e00",
}
SPARE_COLOURS = ("#8c564b", "#5e3c99", "#e0218a", "#8fce00")
