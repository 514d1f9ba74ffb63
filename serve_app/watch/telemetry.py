"""The endpoint's metrics. Ray exports each to Prometheus as `ray_` plus its name, plus `_total` for a counter."""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.watch.drift import Look

DURATIONS_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]


class Telemetry:
    """Metrics of an ingress replica. Serve adds the tags application, deployment and replica.

    Every tag has few values, whatever clients send.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        self.requests = Histogram(
            "tlray_request_duration_seconds",
            "Seconds until requests were answered.",
            DURATIONS_S,
            _tags("model", "method", "route", "status"),
        )
        self.request_errors = Counter(
            "tlray_request_errors", "Requests that failed, by error code or status.", _tags("model", "route", "code")
        )
        self.held_images = Gauge(
            "tlray_held_images", "Images that are being decoded, waiting or being predicted.", _tags("model")
        )
        self.predictions = Counter(
            "tlray_predictions", "Images by predicted class.", _tags("model", "version", "label")
        )
        self.referred = Counter(
            "tlray_referred_predictions", "Images that a specialist should see.", _tags("model", "version", "reason")
        )
        self.image_errors = Counter(
            "tlray_image_errors", "Images that cannot be decoded, by error code.", _tags("model", "version", "code")
        )
        self.drift = Gauge(
            "tlray_drift",
            "Population stability index of the latest images compared with the training images, and of their "
            "predictions compared with those for the validation images, by statistic.",
            _tags("model", "version", "statistic"),
        )
        self.drift_chance = Gauge(
            "tlray_drift_chance",
            "Population stability index that one in twenty windows exceeds without any drift, by statistic.",
            _tags("model", "version", "statistic"),
        )
        self.drift_p_value = Gauge(
            "tlray_drift_p_value",
            "Probability that the latest images or predictions differ as much without any drift, by statistic; times "
            "the number of statistics.",
            _tags("model", "version", "statistic"),
        )
        self.drift_alarms = Counter(
            "tlray_drift_alarms",
            "Looks at the latest images that found drift, by statistic.",
            _tags("model", "version", "statistic"),
        )
        self.shadow_images = Counter(
            "tlray_shadow_images",
            "Images of shadow traffic, by outcome: agree, differ, error, dropped.",
            _tags("model", "outcome"),
        )
        self.shadow_difference = Counter(
            "tlray_shadow_difference",
            "Mean absolute difference of the probabilities, summed over images.",
            _tags("model"),
        )
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                metric.set_default_tags({"model": model})

    def answered(self, *, method: str, route: str, status: int, code: str | None, duration_s: float) -> None:
        """Counts an answered request; `code` is the `error_code` of an error answer."""
        self.requests.observe(duration_s, {"method": method, "route": route, "status": str(status)})
        if status >= 400:
            self.request_errors.inc(1, {"route": route, "code": code or str(status)})

    def predicted(self, version: int, *, labels: Sequence[str], reasons: Sequence[str]) -> None:
        """Counts the predicted images of a request by label, and those that are referred by reason."""
        tags = {"version": str(version)}
        for label, count in Tally(labels).items():
            self.predictions.inc(count, {**tags, "label": label})
        for reason, count in Tally(reasons).items():
            self.referred.inc(count, {**tags, "reason": reason})

    def undecodable(self, version: int, codes: Sequence[str]) -> None:
        """Counts the images of a request that cannot be decoded, by error code."""
        for code, count in Tally(codes).items():
            self.image_errors.inc(count, {"version": str(version), "code": code})

    def looked(self, version: int, look: Look, chance: Mapping[str, float]) -> None:
        """Sets the gauges of a version's drift, and counts the statistics that have drifted.

        Args:
            version: The version's number.
            look: The indices and p-values; NaN: not known.
            chance: The chance level of each index.
        """
        gauges = ((self.drift, look.indices), (self.drift_p_value, look.p_values), (self.drift_chance, chance))
        for gauge, values in gauges:
            for statistic, value in values.items():
                gauge.set(value, {"version": str(version), "statistic": statistic})
        for statistic in look.drifted:
            self.drift_alarms.inc(1, {"version": str(version), "statistic": statistic})

    def compared(self, *, num_agreeing: int, num_differing: int, differences: float) -> None:
        """Counts images that the shadow has predicted, and adds to the sum of their mean absolute differences."""
        for outcome, count in (("agree", num_agreeing), ("differ", num_differing)):
            if count:
                self.shadow_images.inc(count, {"outcome": outcome})
        if differences:
            self.shadow_difference.inc(differences, {})

    def not_compared(self, outcome: str, count: int) -> None:
        """Counts images that could not be compared with the shadow; `outcome` is `error` or `dropped`."""
        self.shadow_images.inc(count, {"outcome": outcome})


class ModelTelemetry:
    """Metrics of a model replica.

    Args:
        version: The model's version, or `shadow`.
    """

    def __init__(self, version: int | str) -> None:
        self._tags = {"version": str(version)}
        self.batches = Histogram(
            "tlray_batch_images", "Number of images in each batch of the model.", BATCH_SIZES, _tags("version")
        )
        self.waiting_images = Gauge("tlray_waiting_images", "Images that wait for the model.", _tags("version"))
        self.failed_loads = Gauge(
            "tlray_failed_loads",
            "Failed attempts in a row to load the bundle that user_config names; 0: it is loaded.",
            _tags("version"),
        )

    def started(self, *, batch_size: int, num_waiting: int) -> None:
        """Counts a batch that begins, and sets the gauge of the images that still wait."""
        self.batches.observe(batch_size, self._tags)
        self.waiting_images.set(num_waiting, self._tags)

    def loaded(self) -> None:
        """Sets the gauge of failed attempts to 0: the bundle that is wanted is loaded."""
        self.failed_loads.set(0, self._tags)

    def not_loaded(self, num_failed: int) -> None:
        """Sets the gauge of failed attempts to load the bundle that is wanted."""
        self.failed_loads.set(num_failed, self._tags)


def _tags(*names: str) -> Any:
    """Returns tag names for a metric of Serve, whose annotation allows only a single name."""
    return names
