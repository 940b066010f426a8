//! Plots of a report, as SVG.

use std::ops::Range;

use plotters::prelude::*;

use super::infill::Decoded;
use super::speed::Point;
use super::{EvalError, InfillReport, Measure, SpeedReport};

const SIZE: (u32, u32) = (900, 500);
const BLUE: RGBColor = RGBColor(50, 110, 190);
const RED: RGBColor = RGBColor(200, 70, 40);
const GREEN: RGBColor = RGBColor(60, 140, 70);

/// A line of a plot with the intervals of its points.
struct Curve {
    name: &'static str,
    colour: RGBColor,
    points: Vec<CurvePoint>,
}

struct CurvePoint {
    x: f64,
    y: Measure,
    label: String,
}

/// A plot's horizontal axis.
struct Axis {
    name: &'static str,
    range: Range<f64>,
    digits: usize,
}

/// Accuracy against the share of tokens that was masked.
///
/// # Errors
/// When drawing fails.
pub fn infill_svg(report: &InfillReport) -> Result<String, EvalError> {
    let point = |rate: f64, y: Measure| CurvePoint {
        x: rate,
        y,
        label: String::new(),
    };
    let decoded = |of: fn(&Decoded) -> Measure| {
        let points = report.decoded.iter();
        points.map(|p| point(p.masked_share, of(p))).collect()
    };
    let curves = [
        Curve {
            name: "tokens, one forward (same windows)",
            colour: BLUE,
            points: (report.one_forward.iter().zip(&report.decoded))
                .map(|(one, p)| point(p.masked_share, one.token_accuracy_of_decoded))
                .collect(),
        },
        Curve {
            name: "tokens, default plan",
            colour: GREEN,
            points: decoded(|p| p.token_accuracy),
        },
        Curve {
            name: "whole spans, default plan",
            colour: RED,
            points: decoded(|p| p.span_exact_match),
        },
    ];
    let axis = Axis {
        name: "share of the window masked",
        range: 0.0..1.0,
        digits: 1,
    };
    svg(&axis, &curves)
}

/// Accuracy against tokens a forward; points are labelled with their thresholds.
///
/// # Errors
/// When drawing fails.
pub fn speed_svg(report: &SpeedReport) -> Result<String, EvalError> {
    let x = |p: &Point| p.tokens_per_forward.value;
    let last = report.points.iter().map(x).fold(1.0, f64::max);
    let mut labelled = f64::NEG_INFINITY;
    let points = report.points.iter().map(|p| {
        // Labels of neighbours would stand on top of each other.
        let apart = (x(p) - labelled).abs() > 0.03 * last;
        if apart {
            labelled = x(p);
        }
        CurvePoint {
            x: x(p),
            y: p.token_accuracy,
            label: if apart {
                p.threshold.to_string()
            } else {
                String::new()
            },
        }
    });
    let curve = Curve {
        name: "threshold sampler",
        colour: BLUE,
        points: points.collect(),
    };
    let axis = Axis {
        name: "tokens per forward",
        // A forward commits at least one token.
        range: 0.9..last * 1.1,
        digits: 1,
    };
    svg(&axis, &[curve])
}

fn svg(axis: &Axis, curves: &[Curve]) -> Result<String, EvalError> {
    let mut svg = String::new();
    draw(&mut svg, axis, curves).map_err(|error| EvalError::Plot(error.to_string()))?;
    Ok(svg)
}

fn draw(svg: &mut String, axis: &Axis, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let highest = points()
        .map(|p| p.y.high.unwrap_or(p.y.value))
        .fold(0.1, f64::max);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(axis.range.clone(), 0.0..(highest * 1.05).min(1.0))?;
    let digits = axis.digits;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .x_desc(axis.name)
        .y_desc("accuracy")
        .x_label_formatter(&|x| format!("{x:.digits$}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .draw()?;
    for curve in curves {
        let style = curve.colour.stroke_width(2);
        let line = curve.points.iter().map(|p| (p.x, p.y.value));
        chart
            .draw_series(LineSeries::new(line.clone(), style))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(line.map(|at| Circle::new(at, 3, curve.colour.filled())))?;
        let intervals = curve.points.iter().filter_map(|p| {
            let ends = [(p.x, p.y.low?), (p.x, p.y.high?)];
            Some(PathElement::new(ends, curve.colour.mix(0.5)))
        });
        chart.draw_series(intervals)?;
        chart.draw_series(curve.points.iter().map(|p| {
            EmptyElement::at((p.x, p.y.value))
                + Text::new(p.label.clone(), (6, -16), ("sans-serif", 14).into_font())
        }))?;
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 15))
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}
