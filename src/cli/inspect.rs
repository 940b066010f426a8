//! `unmask inspect`.

use std::io::Write;

use clap::Args;
use serde_json::json;
use unmask::decode::preset;

use crate::cli::model::ModelArgs;

/// Arguments of `unmask inspect`.
#[derive(Args)]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `unmask inspect`.
pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let checkpoint = args.model.checkpoint()?;
    let spec = checkpoint.spec()?;
    let device = args.model.device.resolve()?;
    let dtype = args.model.dtype.resolve(&device);
    let shapes = checkpoint.shapes()?;
    let weight_bytes = spec.parameters * dtype.size_in_bytes();
    let presets: Vec<_> = preset::all()
        .iter()
        .map(|preset| json!({"name": preset.name, "description": preset.description}))
        .collect();
    if args.json {
        let json = json!({
            "name": checkpoint.name(),
            "spec": spec,
            "dtype": dtype.as_str(),
            "weight_bytes": weight_bytes,
            "presets": presets,
            "tensors": shapes,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    writeln!(out, "model          {}", checkpoint.name())?;
    writeln!(out, "family         {}", spec.family)?;
    writeln!(
        out,
        "parameters     {} in {} tensors",
        spec.parameters,
        shapes.len()
    )?;
    writeln!(
        out,
        "network        {} layers of width {}, {} key/value heads of {}",
        spec.layers, spec.hidden_size, spec.kv_heads, spec.head_dim
    )?;
    writeln!(out, "vocabulary     {}", spec.vocab_size)?;
    writeln!(out, "canvas         at most {} slots", spec.max_canvas)?;
    match spec.mask_token() {
        Some(mask) => writeln!(out, "mask token     {mask}")?,
        None => writeln!(out, "mask token     none (uniform process)")?,
    }
    writeln!(out, "stop tokens    {:?}", spec.stop_tokens)?;
    writeln!(
        out,
        "default plan   {}",
        serde_json::to_string(&spec.default_plan)?
    )?;
    writeln!(
        out,
        "weights        {weight_bytes} bytes in {}",
        dtype.as_str()
    )?;
    writeln!(
        out,
        "presets        {}",
        preset::all()
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    )?;
    Ok(())
}
