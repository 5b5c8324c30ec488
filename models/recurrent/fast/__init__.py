"""Fast path of a ConvLSTM on CPUs: all steps of a level as one function with Winograd's convolutions.

`level.run` is the one entry point; `ConvLSTMCell.at_once` is its one caller. The equations are those of
`convlstm.lstm_step`, and tests compare results and gradients. On one thread of an AMD EPYC, batch 8, 64 x 64 cells,
`step` after `step` takes 1.17 times as long for a training step of the default model and 1.08 for a forecast; with two
levels of 64 channels and kernels of 5 x 5, 1.50 and 1.40.
"""
