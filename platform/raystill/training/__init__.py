"""The training loop; knows neither Ray nor a method."""
