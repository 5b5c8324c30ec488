"""One colour for each model, in every picture and in MLflow."""

# Okabe & Ito (2008): told apart with every common colour blindness
COLOURS = {
    "persistence": "#7f7f7f",
    "climatology": "#b59f00",
    "damped_persistence": "#56b4e9",
    "advection": "#000000",
    "convlstm": "#0072b2",
    "video_transformer": "#d55e00",
}
SPARE_COLOURS = ("#009e73", "#cc79a7", "#8c564b", "#5e3c99")
