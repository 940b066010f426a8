//! A report as a table for people.

use std::fmt;

use super::{DataForm, DataReport, InfillReport, Measure, Report, SpeedReport};
use crate::eval::bound::Bound;
use crate::models::ForwardProcess;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = match self.process {
            ForwardProcess::Absorbing => "absorbing",
            ForwardProcess::Uniform => "uniform",
        };
        writeln!(f, "model  {}, of the {process} process", self.model)?;
        data(f, &self.data)?;
        writeln!(
            f,
            "Estimated are {}; [low, high] is the 95 % interval over documents.",
            self.estimated
        )?;
        if !self.likelihood.is_empty() {
            likelihood(f, &self.likelihood)?;
        }
        if let Some(report) = &self.infill {
            infill(f, report, self.process)?;
        }
        if let Some(report) = &self.speed {
            speed(f, report)?;
        }
        for left_out in &self.left_out {
            writeln!(
                f,
                "\n{}: not measured: {}",
                left_out.measure, left_out.reason
            )?;
        }
        Ok(())
    }
}

fn data(f: &mut fmt::Formatter<'_>, data: &DataReport) -> fmt::Result {
    let (form, of_answers) = match data.form {
        DataForm::Documents => ("documents", ""),
        DataForm::Pairs => ("pairs", " of answers"),
    };
    writeln!(
        f,
        "data   {}: {} of {} {}, {} of their {} windows of at most {} tokens, {} tokens{}, {} characters, {} bytes",
        data.file,
        data.documents,
        data.documents_available,
        form,
        data.windows,
        data.windows_available,
        data.context,
        data.tokens,
        of_answers,
        data.characters,
        data.bytes
    )?;
    if data.documents_skipped > 0 {
        writeln!(
            f,
            "       {} documents of fewer than 2 tokens were left out",
            data.documents_skipped
        )?;
    }
    Ok(())
}

fn likelihood(f: &mut fmt::Formatter<'_>, bounds: &[Bound]) -> fmt::Result {
    for bound in bounds {
        let error = bound
            .monte_carlo_error
            .map_or(String::new(), |error| format!("  ± {error:.4} Monte Carlo"));
        let rows = [
            (
                "nats/token (NELBO)",
                cell(bound.nats_per_token, 4) + error.as_str(),
            ),
            ("perplexity at most", cell(bound.perplexity_bound, 2)),
            ("bits/character", cell(bound.bits_per_character, 4)),
            ("bits/byte", cell(bound.bits_per_byte, 4)),
        ];
        writeln!(
            f,
            "\nlikelihood, {}, {} draws a window",
            bound.estimator.name(),
            bound.draws
        )?;
        for (name, value) in rows {
            writeln!(f, "  {name:<20}{value}")?;
        }
        if !bound.finite_variance {
            writeln!(
                f,
                "  a check only: the weight 1/t gives it infinite variance, and its intervals are too\n  \
                 narrow when no rare draw is among them; publish the exact count"
            )?;
        }
    }
    Ok(())
}

fn infill(
    f: &mut fmt::Formatter<'_>,
    report: &InfillReport,
    process: ForwardProcess,
) -> fmt::Result {
    let windows = |windows: Option<usize>| windows.unwrap_or_default();
    writeln!(
        f,
        "\ninfilling of spans of {} tokens, greedy; one forward: {} windows, of which {} were decoded by the default \
         plan too",
        report.span,
        windows(report.one_forward.first().map(|point| point.windows)),
        windows(report.decoded.first().map(|point| point.windows)),
    )?;
    if process == ForwardProcess::Uniform {
        writeln!(f, "  (masked slots hold random tokens)")?;
    }
    writeln!(
        f,
        "  {:>6}  {:<26}{:<26}{:<26}{:<26}",
        "masked",
        "tokens, one forward",
        "of the decoded windows",
        "tokens, default plan",
        "spans, default plan"
    )?;
    for (one, decoded) in report.one_forward.iter().zip(&report.decoded) {
        writeln!(
            f,
            "  {:>5.0}%  {:<26}{:<26}{:<26}{:<26}",
            one.masked_share * 100.0,
            cell(one.token_accuracy, 3),
            cell(one.token_accuracy_of_decoded, 3),
            cell(decoded.token_accuracy, 3),
            cell(decoded.span_exact_match, 3)
        )?;
    }
    Ok(())
}

fn speed(f: &mut fmt::Formatter<'_>, report: &SpeedReport) -> fmt::Result {
    writeln!(
        f,
        "\nthreshold sampler, {:.0} % masked in spans of {} tokens, {} windows",
        report
            .points
            .first()
            .map_or(report.mask_rate, |point| point.masked_share)
            * 100.0,
        report.span,
        report.windows
    )?;
    writeln!(
        f,
        "  {:>9}  {:<26}{:<26}",
        "threshold", "tokens/forward", "token accuracy"
    )?;
    for point in &report.points {
        writeln!(
            f,
            "  {:>9}  {:<26}{:<26}",
            point.threshold,
            cell(point.tokens_per_forward, 3),
            cell(point.token_accuracy, 3)
        )?;
    }
    Ok(())
}

fn cell(measure: Measure, digits: usize) -> String {
    let Measure { value, low, high } = measure;
    match (low, high) {
        (Some(low), Some(high)) => format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]"),
        _ => format!("{value:.digits$}"),
    }
}
