"""Fast path of a ConvLSTM on CPUs: all steps of a level as one function with Winograd's convolutions.

`level.run` is the one entry point; `ConvLSTMCell.at_once` is its one caller. The equations are those of
`convlstm.lstm_step`, and tests compare results and gradients.
The measurement is in `benchmarks/recurrent.py`.
"""
