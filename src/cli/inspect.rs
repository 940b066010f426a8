//! `unmask inspect`.

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
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    println!("model          {}", checkpoint.name());
    println!("family         {}", spec.family);
    println!(
        "parameters     {} in {} tensors",
        spec.parameters,
        shapes.len()
    );
    println!(
        "network        {} layers of width {}, {} key/value heads of {}",
        spec.layers, spec.hidden_size, spec.kv_heads, spec.head_dim
    );
    println!("vocabulary     {}", spec.vocab_size);
    println!("canvas         at most {} slots", spec.max_canvas);
    println!("mask token     {}", spec.mask_token);
    println!("stop tokens    {:?}", spec.stop_tokens);
    println!(
        "default plan   {}",
        serde_json::to_string(&spec.default_plan)?
    );
    println!("weights        {weight_bytes} bytes in {}", dtype.as_str());
    println!(
        "presets        {}",
        preset::all()
            .iter()
            .map(|p| p.name)
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(())
}
