"""What only this repository needs of measuring: demonstration, benchmarks, ablation, its reports. Not installed."""
