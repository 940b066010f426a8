use std::io::{BufRead, BufReader};
use std::process::Child;

use super::*;

/// A short run on the uniform process.
fn trained() -> Case {
    let mut case = Case::new();
    case.config.process = ForwardProcess::Uniform;
    case.config.steps = 80;
    case.run().unwrap();
    case
}

fn unmask(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args(arguments)
        .output()
        .unwrap();
    let printed = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    (output.status.success(), String::from_utf8(printed).unwrap())
}

fn bound(model: &str, data: &str) -> f64 {
    let options = "--parts likelihood --draws 24 --documents 6 --windows 2 --json";
    let mut arguments = vec!["eval", "--device", "cpu", "--model", model, "--data", data];
    arguments.extend(options.split(' '));
    let (done, printed) = unmask(&arguments);
    assert!(done, "{printed}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["process"], "uniform");
    let left_out = report["left_out"][0]["measure"].as_str().unwrap();
    assert!(left_out.contains("exact count"), "{left_out}");
    let bounds = report["likelihood"].as_array().unwrap();
    assert_eq!(bounds.len(), 1, "the count of masks means nothing here");
    bounds[0]["nats_per_token"]["value"].as_f64().unwrap()
}

#[test]
fn a_model_of_the_uniform_process_learns_and_is_validated_evaluated_and_sampled() {
    let case = trained();
    let state = load_state(&state_path(&case.config.out)).unwrap();
    let best = state.progress.best.unwrap();
    assert!(best < 0.75 * 300f64.ln(), "{best}");
    assert_eq!(
        json(&case.config.out.join("config.json"))["unmask_process"],
        "uniform"
    );

    let model = case.config.out.to_str().unwrap();
    let valid = case.config.valid.to_str().unwrap();
    // Other windows, draws and times, of the same text; documents are not cut off their ends.
    let evaluated = bound(model, valid);
    assert!((evaluated / best - 1.0).abs() < 0.15, "{evaluated} {best}");

    let infill = [
        "infill",
        "the cat {{3}} the river.",
        "--seed",
        "4",
        "--model",
        model,
    ];
    let (done, text) = unmask(&infill);
    assert!(
        done && text.starts_with("the cat ") && text.ends_with(" the river.\n"),
        "{text}"
    );
    assert_eq!(unmask(&infill).1, text, "seeded");
    let trace = case.path("trace.jsonl");
    let mut arguments = vec![
        "generate", "the cat", "--gap", "8", "--model", model, "--steps",
    ];
    arguments.extend(["11", "--ids", "--trace", trace.to_str().unwrap()]);
    let (done, ids) = unmask(&arguments);
    assert!(done, "{ids}");
    let lines = fs::read_to_string(&trace).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 12, "noise and eleven steps");
    let last = lines[11]["canvas"].as_array().unwrap();
    let last: Vec<String> = last.iter().map(|id| id.to_string()).collect();
    assert_eq!(last.join(","), ids.trim_end());

    let (_, error) = unmask(&[
        "generate",
        "a",
        "--gap",
        "4",
        "--model",
        model,
        "--preset",
        "fast-dllm",
    ]);
    assert!(error.contains("uniform-ancestral"), "{error}");
    let (_, error) = unmask(&["infill", "--canvas-ids", "5,0", "--model", model]);
    assert!(error.contains("trained on the uniform process"), "{error}");
    let (_, error) = unmask(&["generate", "a", "--preset", "uniform-ancestral"]);
    assert!(error.contains("fills masks"), "{error}");

    let options =
        "--parts infill,speed --documents 2 --windows 1 --decode-windows 1 --mask-rates 0.5";
    let mut arguments = vec!["eval", "--device", "cpu", "--model", model, "--data", valid];
    arguments.extend(options.split(' '));
    let (done, table) = unmask(&arguments);
    assert!(done && table.contains("of the uniform process"), "{table}");
    assert!(
        table.contains("random tokens") && table.contains("speed: not measured"),
        "{table}"
    );
    let mut arguments = vec!["eval", "--device", "cpu", "--model", model, "--data", valid];
    arguments.extend(["--thresholds", "0.3"]);
    let (_, error) = unmask(&arguments);
    assert!(
        error.contains("--thresholds is for --parts speed, not measured of this model"),
        "{error}"
    );
}

#[test]
fn a_run_keeps_its_process() {
    let mut case = trained();
    case.config.resume = true;
    case.config.process = ForwardProcess::Absorbing;
    let error = case.fails();
    assert!(
        error.contains("process was Uniform when the run was saved"),
        "{error}"
    );

    // From its checkpoint another run goes on with the uniform process, unless told otherwise.
    let mut second = Case::new();
    second.config.init = Some(case.config.out.clone());
    let initial = Initial::open(&case.config.out).unwrap();
    let config = second.config.clone().starting_from(&initial);
    assert_eq!(config.process, ForwardProcess::Uniform);
    second.config.steps = 1;
    second.run().unwrap();
    assert!(
        json(&second.config.out.join("config.json"))
            .get("unmask_process")
            .is_none()
    );

    second.config.process = ForwardProcess::Uniform;
    second.config.objective = Objective::CrossEntropy;
    let error = second.fails();
    assert!(
        error.contains("objective is cross-entropy; allowed: nelbo"),
        "{error}"
    );
}

#[test]
fn every_slot_has_a_loss_and_noise_is_any_token() {
    let mut case = Case::new();
    case.config.process = ForwardProcess::Uniform;
    case.config.batch = 512;
    let data = Data::prepare(&case.config, None).unwrap();
    let batch = data.batch(&case.config, 0).unwrap();
    assert_eq!(batch.scored.len(), batch.tokens());
    let noised = batch.clean.iter().zip(&batch.noisy).filter(|(a, b)| a != b);
    let tokens: Vec<u32> = noised.map(|(_, noisy)| *noisy).collect();
    let share = tokens.len() as f64 / batch.tokens() as f64;
    assert!(
        (share - 0.5).abs() < 0.02,
        "half are noised on average: {share}"
    );
    let distinct: BTreeSet<u32> = tokens.iter().copied().collect();
    assert!(distinct.len() > 290, "{}", distinct.len());
}

/// A server of a model; it ends with the test.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(model: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["serve", "--device", "cpu", "--port", "0", "--model"])
            .arg(model)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.strip_prefix("listening on ").map(str::trim_end);
        let url = url.unwrap_or_default().to_owned();
        Self { process, url }
    }

    fn complete(&self, request: &Value) -> Value {
        let answer = reqwest::blocking::Client::new()
            .post(format!("{}/v1/completions", self.url))
            .json(request)
            .send()
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What fails here has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn trained_models_of_both_processes_are_served() {
    let mut absorbing = Case::new();
    absorbing.config.steps = 20;
    absorbing.run().unwrap();
    for case in [absorbing, trained()] {
        let server = Server::start(&case.config.out);
        let request = |seed: u64| {
            serde_json::json!({
                "prompt": "the cat",
                "max_tokens": 8,
                "seed": seed,
                "temperature": 1.0,
                "diffusion": {"steps": 4},
            })
        };
        let answer = server.complete(&request(1));
        let text = |answer: &Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
        assert!(!text(&answer).is_empty(), "{answer}");
        assert_eq!(answer["diffusion"]["steps"], 4, "{answer}");
        assert_eq!(text(&server.complete(&request(1))), text(&answer), "seeded");
        assert_ne!(text(&server.complete(&request(2))), text(&answer), "drawn");
    }
}
