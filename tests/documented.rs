//! The documentation's promises: what it shows is what the commands and the server of the embedded model answer.
//!
//! Of the Markdown files named below:
//!
//! - a `sh` block that begins with `curl` is run, and the `json` block after it is its answer, up to ids and times;
//! - a `console` block is run line by line, and shows what is printed;
//! - a stream comes in as many pieces as the API's page says after its request;
//! - a line of a `sh` block that begins with `unmask` names options that exist;
//! - a link within the repository leads to a file, and to a heading of it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// Whether a field is one that no two answers share: a time, or an identifier, which is a string where a token's
/// id is a number.
fn changes(name: &str, value: &Value) -> bool {
    match name {
        "id" => value.is_string(),
        "created" => true,
        _ => name.ends_with("_ms") || name.ends_with("_per_second"),
    }
}

/// What would send curl to a proxy in the place of the server that the test started.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file that a reader of the repository is led to.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = Vec::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension() == Some(OsStr::new("md")) {
                pages.push(path);
            }
        }
    }
    let others = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "deploy/README.md",
        "kernels/README.md",
        "models/unmask-small/README.md",
        "tests/configs/README.md",
    ];
    pages.extend(others.map(|page| root().join(page)));
    pages.sort();
    pages
}

/// A fenced block.
struct Block {
    page: PathBuf,
    /// Its first line, from 1.
    line: usize,
    language: String,
    text: String,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.page.display(), self.line)
    }
}

fn blocks(page: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in fs::read_to_string(page).unwrap().lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block {
                    page: page.to_owned(),
                    line: index + 2,
                    language: language.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{} ends in a block", page.display());
    blocks
}

/// A folder with the binary under its own name, to be first in PATH.
fn search_path() -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_unmask")).parent().unwrap();
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

/// What a line prints in a shell.
fn printed(line: &str, place: &str) -> String {
    let mut command = Command::new("bash");
    command
        .args(["-eo", "pipefail", "-c", line])
        .current_dir(root())
        .env("PATH", search_path())
        .env_remove("RUST_LOG");
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{place}: {line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["serve", "--port", "0", "--device", "cpu"])
            .env_remove("RUST_LOG")
            .env_remove("UNMASK_API_KEYS")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.strip_prefix("listening on ").unwrap().trim_end();
        Self {
            url: url.to_owned(),
            process,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already, which a test that failed has told.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How `answer` differs from what is `shown` at `path`, if it does. `…` in a shown string stands for anything;
/// numbers agree to three digits, since processors add in different orders.
fn difference(shown: &Value, answer: &Value, path: &str) -> Option<String> {
    let differs = || Some(format!("{path} is shown as {shown} but is {answer}"));
    match (shown, answer) {
        (Value::Object(fields), Value::Object(others)) => {
            let missing = fields.keys().find(|key| !others.contains_key(*key));
            let extra = others.keys().find(|key| !fields.contains_key(*key));
            if let Some(key) = missing.or(extra) {
                return Some(format!("{path}.{key} is in one of the two only"));
            }
            fields
                .iter()
                .filter(|(key, shown)| !changes(key, shown))
                .find_map(|(key, shown)| difference(shown, &others[key], &format!("{path}.{key}")))
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => items
            .iter()
            .zip(others)
            .enumerate()
            .find_map(|(i, (shown, answer))| difference(shown, answer, &format!("{path}[{i}]"))),
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            match (a - b).abs() <= 1e-3 * a.abs().max(b.abs()) {
                true => None,
                false => differs(),
            }
        }
        (Value::String(shown), Value::String(answer)) => {
            let whole = match shown.split_once('…') {
                Some((before, after)) => answer.starts_with(before) && answer.ends_with(after),
                None => shown == answer,
            };
            if whole { None } else { differs() }
        }
        _ if shown == answer => None,
        _ => differs(),
    }
}

#[test]
fn requests_are_answered_as_the_documentation_shows() {
    let server = Server::start();
    let mut compared = 0;
    for page in pages() {
        let blocks = blocks(&page);
        for (i, request) in blocks.iter().enumerate() {
            if request.language != "sh" || !request.text.starts_with("curl") {
                continue;
            }
            let place = request.place();
            let line = request.text.replace("http://127.0.0.1:8080", &server.url);
            let answer = printed(&line, &place);
            match blocks.get(i + 1).filter(|next| next.language == "json") {
                Some(shown) => {
                    let answer = serde_json::from_str(&answer).unwrap();
                    let shown = serde_json::from_str(&shown.text).unwrap();
                    if let Some(difference) = difference(&shown, &answer, "answer") {
                        panic!("{place}: {difference}");
                    }
                    compared += 1;
                }
                None => assert!(!answer.contains("\"error\""), "{place}: {answer}"),
            }
        }
    }
    assert!(compared > 8, "only {compared} answers are shown");
}

#[test]
fn a_stream_comes_in_as_many_pieces_as_the_documentation_says() {
    const BY_BLOCKS: &str = r#", "diffusion": {"block_length": 8}"#;
    let server = Server::start();
    let page = root().join("docs/api.md");
    let text = fs::read_to_string(&page).unwrap();
    let (_, said) = text.split_once("This text comes in ").unwrap();
    let mut said = said
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse::<usize>().ok());
    let blocks = blocks(&page);
    let request = blocks.iter().find(|block| block.text.contains(BY_BLOCKS));
    let request = request.unwrap();
    let whole = request.text.replace(BY_BLOCKS, "");
    for line in [&request.text, &whole] {
        let line = line.replace("http://127.0.0.1:8080", &server.url);
        let stream = printed(&line, &request.place());
        let chunks = stream
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str::<Value>(data).unwrap());
        let pieces = chunks.filter(|chunk| chunk["choices"][0]["text"] != "");
        assert_eq!(pieces.count(), said.next().unwrap(), "{line}");
    }
}

#[test]
fn commands_print_what_the_documentation_shows() {
    let mut compared = 0;
    for page in pages() {
        for block in blocks(&page) {
            if block.language != "console" {
                continue;
            }
            let text = format!("\n{}", block.text);
            for command in text.split("\n$ ").skip(1) {
                let (line, shown) = command.split_once('\n').unwrap_or((command, ""));
                let place = block.place();
                assert_eq!(
                    printed(line, &place).trim_end(),
                    shown.trim_end(),
                    "{place}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 2, "only {compared} commands are shown");
}

#[test]
fn every_command_that_is_shown_has_its_options() {
    let mut seen = 0;
    for page in pages() {
        for block in blocks(&page) {
            if block.language != "sh" {
                continue;
            }
            let text = block.text.replace("\\\n", " ");
            for line in text.lines().filter(|line| line.starts_with("unmask ")) {
                let line = line.split([';', '|', '>', '#']).next().unwrap();
                // Help is printed in the place of the command, after what stands before it was parsed.
                printed(&format!("{line} --help"), &block.place());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "only {seen} commands are shown");
}

/// The fragment that leads to a heading, as GitHub makes it.
fn fragment(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| {
            let link = rest.split([')', ' ']).next()?;
            (!link.contains("://")).then_some(link)
        });
        for link in links {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let found = headings.map(fragment).any(|found| found == heading);
                assert!(found, "{}: {link}", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} links are checked");
}
