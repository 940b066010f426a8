//! `loss.svg`: the smoothed training loss and the validation loss.

use plotters::prelude::*;

use super::error::TrainError;
use super::log::LogLine;

/// Draws the losses of a log, in nats per token by step.
///
/// # Errors
/// When drawing fails.
pub fn loss_svg(lines: &[LogLine]) -> Result<String, TrainError> {
    let mut train = Vec::new();
    let mut valid = Vec::new();
    let (mut average, mut weight) = (0.0, 0.0);
    for line in lines {
        match *line {
            LogLine::Step { step, loss, .. } => {
                // An exponential average over about 50 steps, corrected for its start.
                average = 0.98 * average + 0.02 * loss;
                weight = 0.98 * weight + 0.02;
                train.push((step as f64, average / weight));
            }
            LogLine::Validation {
                step,
                valid_nats_per_token,
                ..
            } => {
                valid.push((step as f64, valid_nats_per_token));
            }
        }
    }
    let mut svg = String::new();
    draw(&mut svg, &train, &valid).map_err(|error| TrainError::Plot(error.to_string()))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    train: &[(f64, f64)],
    valid: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || train.iter().chain(valid);
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low.is_finite() {
        (low, high)
    } else {
        (0.0, 1.0)
    };
    let margin = ((high - low) * 0.05).max(0.01);
    let area = SVGBackend::with_string(svg, (900, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step")
        .y_desc("nats per token")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .draw()?;
    let train_style = RGBColor(120, 160, 210).stroke_width(2);
    let valid_style = RGBColor(200, 70, 40).stroke_width(2);
    for (points, style, name) in [
        (train, train_style, "training objective (smoothed)"),
        (valid, valid_style, "validation NELBO (averaged weights)"),
    ] {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_drawn_even_of_an_empty_log() {
        assert!(loss_svg(&[]).unwrap().starts_with("<svg"));
    }
}
