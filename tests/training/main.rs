//! What `unmask train` promises, tested from outside.

mod command;
mod data;
mod files;
mod initial;
mod learning;
mod packing;
mod pairs;
mod refusals;
mod resuming;
mod uniform;
mod windows;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device};
use serde_json::Value;
use tempfile::TempDir;
use unmask::diffusion::Schedule;
use unmask::models::ForwardProcess;
use unmask::models::llada::LladaConfig;
use unmask::text::{HfTokenizer, Tokenizer as _};
use unmask::train::batch::Batch;
use unmask::train::checkpoint::{load_state, state_path, write_atomically};
use unmask::train::data::Data;
use unmask::train::layout::{Layout, Role};
use unmask::train::network::{ComposedNetwork, Network};
use unmask::train::run::Event;
use unmask::train::{
    self, Initial, ModelDtype, Objective, OptimizerKind, Packing, Precision, TimeSampling,
    TrainConfig, TrainDevice, TrainError, Trainer,
};

/// Sentences of a small grammar, the same every time; two documents in three languages.
fn text(sentences: usize) -> String {
    let (who, does, what) = (
        ["the cat", "a small dog", "my sister", "der Bär", "le héros"],
        ["sees", "likes", "follows", "paints"],
        ["the moon", "a red ball", "the river", "ein Haus", "l’été"],
    );
    let mut state = 1u64;
    let mut pick = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut text = String::new();
    for i in 0..sentences {
        if i % 40 == 39 {
            text += "\n<|doc|>\n";
        }
        text += &format!("{} {} {}. ", who[pick(5)], does[pick(4)], what[pick(5)]);
    }
    text
}

/// Nothing stops a run.
static NEVER: AtomicBool = AtomicBool::new(false);

struct Case {
    directory: TempDir,
    config: TrainConfig,
}

impl Case {
    /// A run of a tiny model that takes about a second.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("train.txt"), text(1500)).unwrap();
        fs::write(at("valid.txt"), text(300)).unwrap();
        let config = TrainConfig {
            vocab_size: Some(300),
            context: 24,
            layers: 2,
            hidden: 32,
            heads: 2,
            batch: 8,
            steps: 60,
            lr: 5e-3,
            ema: 0.9,
            valid_every: 20,
            valid_windows: 16,
            save_every: 20,
            ..TrainConfig::new(vec![at("train.txt")], at("valid.txt"), at("out"))
        };
        Self { directory, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self) -> Result<Trainer, TrainError> {
        train::run(self.config.clone(), &NEVER, |_| {})
    }

    fn fails(&self) -> String {
        match self.run() {
            Ok(_) => panic!("the run should fail"),
            Err(error) => error.to_string(),
        }
    }

    fn trainer(&self) -> Trainer {
        let data = Data::prepare(&self.config, None).unwrap();
        Trainer::new(self.config.clone(), data).unwrap()
    }

    /// Starts the run and kills it when its log has so many lines; the step of the state that is left, which
    /// is the last one if the run came to its end before.
    fn kill_after(&self, mut command: Command, lines: usize) -> u64 {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let log = self.config.out.join("log.jsonl");
        while fs::read_to_string(&log).unwrap_or_default().lines().count() < lines {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let state = load_state(&state_path(&self.config.out)).unwrap();
        state.progress.step
    }

    /// Trains so many steps and leaves the run resumable, as if it had been killed.
    fn stop_at(&self, step: u64) {
        let mut trainer = self.trainer();
        for _ in 0..step {
            trainer.step().unwrap();
        }
        fs::create_dir_all(self.config.out.join("state")).unwrap();
        trainer.write_tokenizer(&self.config.out).unwrap();
        trainer.save_state(&self.config.out).unwrap();
    }

    /// The command line of this run.
    fn command(&self) -> Command {
        let config = &self.config;
        let mut command = Command::new(env!("CARGO_BIN_EXE_unmask"));
        command.arg("train").arg("--data").args(&config.data);
        command
            .arg("--valid")
            .arg(&config.valid)
            .arg("--out")
            .arg(&config.out);
        for (name, value) in [
            ("vocab-size", config.vocab_size.unwrap().to_string()),
            ("context", config.context.to_string()),
            ("layers", config.layers.to_string()),
            ("hidden", config.hidden.to_string()),
            ("heads", config.heads.to_string()),
            ("batch", config.batch.to_string()),
            ("steps", config.steps.to_string()),
            (
                "optimizer",
                format!("{:?}", config.optimizer).to_lowercase(),
            ),
            ("lr", config.lr.to_string()),
            ("ema", config.ema.to_string()),
            ("valid-every", config.valid_every.to_string()),
            ("valid-windows", config.valid_windows.to_string()),
            ("save-every", config.save_every.to_string()),
        ] {
            command.arg(format!("--{name}")).arg(value);
        }
        command
    }
}

/// The log without what depends on the clock.
fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            fields.remove("seconds");
            for speed in [
                "tokens_per_second",
                "operations_per_second",
                "product_rate_share",
            ] {
                fields.remove(speed);
            }
            line
        })
        .collect()
}

/// All files below a directory with their contents.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
