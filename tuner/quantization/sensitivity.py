"""How much each operator's rounding disturbs the detector's raw results: measured, on a handful of images."""
