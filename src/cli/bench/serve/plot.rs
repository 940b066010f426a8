//! Draws tokens a second and latency by load, as SVG.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::quantiles::Quantiles;
use super::report::{Level, Report};

const SIZE: (u32, u32) = (1100, 460);
const BLUE: RGBColor = RGBColor(50, 110, 190);
const RED: RGBColor = RGBColor(200, 70, 40);
const GREEN: RGBColor = RGBColor(60, 140, 70);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A line of a plot: its name, colour, and value at each load that has one.
type Curve = (&'static str, RGBColor, Vec<Option<f64>>);

/// The plot of a report.
///
/// # Errors
/// If drawing fails.
pub fn svg(report: &Report) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, report).map_err(|error| anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

fn draw(svg: &mut String, report: &Report) -> Drawn {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    let levels = &report.levels;
    let all = |of: &dyn Fn(&Level) -> Option<f64>| levels.iter().map(of).collect();
    let latency = |of: fn(&Quantiles) -> f64| all(&|level| level.latency_ms.as_ref().map(of));
    let throughput: Vec<Option<f64>> = all(&|level| Some(level.tokens_per_second));
    panel(&left, levels, "tokens/s", &[("tokens/s", BLUE, throughput)])?;
    panel(
        &right,
        levels,
        "latency, ms",
        &[
            ("p50", GREEN, latency(|quantiles| quantiles.p50)),
            ("p90", BLUE, latency(|quantiles| quantiles.p90)),
            ("p99", RED, latency(|quantiles| quantiles.p99)),
        ],
    )?;
    area.present()?;
    Ok(())
}

fn panel(area: &Area<'_>, levels: &[Level], name: &str, curves: &[Curve]) -> Drawn {
    let values = || {
        curves
            .iter()
            .flat_map(|(_, _, values)| values.iter().flatten())
    };
    let highest = values().copied().fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(-0.5..levels.len() as f64 - 0.5, 0.0..highest)?;
    let label = |x: &f64| match (x - x.round()).abs() < 1e-6 {
        true => levels.get(x.round() as usize).map(Level::load),
        false => None,
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .x_labels(2 * levels.len() + 1)
        .x_desc("load")
        .y_desc(name)
        .x_label_formatter(&|x| label(x).unwrap_or_default())
        .draw()?;
    for (name, colour, values) in curves {
        let style = colour.stroke_width(2);
        let points = values.iter().enumerate();
        let points = points.filter_map(|(index, value)| Some((index as f64, (*value)?)));
        chart
            .draw_series(LineSeries::new(points.clone(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(points.map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .label_font(("sans-serif", 14))
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()?;
    Ok(())
}
