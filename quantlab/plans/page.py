"""The page of a plan: plan.html, self-contained, the same bytes for the same sweep and request."""

from markupsafe import Markup

from quantlab.plans.mixture import Plan
from quantlab.plans.plots import noise_over_size, strip, unbeaten
from quantlab.plans.sentences import (
    answer,
    count_heads,
    count_rows,
    sentences,
    tensor_heads,
    tensor_rows,
)
from quantlab.report import plots
from quantlab.report.template import template
from quantlab.report.texts import Texts
from quantlab.text import format_number

NAMED = 6  # formats that the description of a picture names


def page(plan: Plan, asked: str, results_sha256: str, t: Texts) -> bytes:
    """Return plan.html; `asked` is the command."""
    with plots.plot_style():
        curve = plots.svg(noise_over_size(plan, t), salt="plan_curve")
        layers = plots.svg(strip(plan, t), salt="plan_strip")
    dists = ", ".join(dict.fromkeys(each.tensor.dist for each in plan.tensors))
    html = template("plan.html.j2").render(
        t=t,
        subtitle=t("plan_subtitle", dists=dists, n=len(plan.tensors), values=f"{plan.n_values:,}"),
        answer=answer(plan, t),
        sentences=list(sentences(plan, t)),
        curve=Markup(plots.inline(curve, _curve_text(plan, t))),
        strip=Markup(plots.inline(layers, _strip_text(plan, t))),
        count_heads=count_heads(t),
        counts=count_rows(plan, t),
        heads=tensor_heads(t),
        tensors=tensor_rows(plan, t),
        command=asked,
        results=results_sha256,
    )
    return html.encode(errors="backslashreplace")


def _curve_text(plan: Plan, t: Texts) -> str:
    """Return in words what the curve shows."""
    best = [each for each in unbeaten(plan.uniform) if each.noise][:NAMED]
    points = [
        t(
            "plan_alt_point",
            name=each.name,
            noise=f"{each.noise:.3g}",
            bits=format_number(each.bits / plan.n_values, ".4g"),
        )
        for each in best
    ]
    return t("plan_curve_alt", noise=f"{plan.noise:.3g}", points="; ".join(points))


def _strip_text(plan: Plan, t: Texts) -> str:
    counts = "; ".join(
        t("cheapest_count", format=name, n=len(planned)) for name, planned in plan.counts[:NAMED]
    )
    return t("plan_strip_alt", counts=counts)
