//! Redraws a canvas on the terminal while it is denoised.

use std::time::{Duration, Instant};

use console::{Color, Style, Term};
use unmask::canvas::{Canvas, Splice};
use unmask::engine::StepReport;
use unmask::text::Tokenizer;

/// How long a picture stands at least: a small model takes a step in less time than an eye.
const SHOWN: Duration = Duration::from_millis(60);

/// The picture of a canvas: a piece of text a slot.
pub struct Animation<'a> {
    term: Term,
    tokenizer: &'a dyn Tokenizer,
    slots: Vec<Slot>,
    lines: usize,
    drawn: Instant,
}

#[derive(Clone, Default)]
struct Slot {
    /// `None` while masked.
    text: Option<String>,
    style: Style,
}

impl<'a> Animation<'a> {
    /// Draws `canvas`. Nothing is drawn where standard output is not a terminal.
    pub fn start(canvas: &Canvas, tokenizer: &'a dyn Tokenizer) -> std::io::Result<Self> {
        let slots = (0..canvas.len())
            .map(|slot| Slot {
                text: canvas
                    .is_fixed(slot)
                    .then(|| tokenizer.decode(&[canvas.token(slot)])),
                style: Style::new(),
            })
            .collect();
        let mut animation = Self {
            term: Term::stdout(),
            tokenizer,
            slots,
            lines: 0,
            drawn: Instant::now(),
        };
        animation.draw("step 0")?;
        Ok(animation)
    }

    /// Draws what a step committed, coloured by the model's probability for it.
    pub fn step(&mut self, report: &StepReport) -> std::io::Result<()> {
        for (slot, commit) in &report.committed {
            self.slots[*slot] = Slot {
                text: Some(self.tokenizer.decode(&[commit.token])),
                style: confidence_style(commit.probability),
            };
        }
        for slot in &report.remasked {
            self.slots[*slot].text = None;
        }
        Splice::apply(&report.spliced, &mut self.slots, 0, &Slot::default());
        if self.term.is_term() {
            std::thread::sleep(SHOWN.saturating_sub(self.drawn.elapsed()));
        }
        self.draw(&format!("step {}", report.step))
    }

    /// Removes the picture, so that the result can be printed in its place.
    pub fn finish(self) -> std::io::Result<()> {
        self.term.clear_last_lines(self.lines)
    }

    fn draw(&mut self, status: &str) -> std::io::Result<()> {
        if !self.term.is_term() {
            return Ok(());
        }
        let (height, width) = self.term.size();
        let (height, width) = (usize::from(height), usize::from(width).max(2));
        let mut picture = vec![String::new()];
        let mut column = 0;
        for slot in &self.slots {
            for character in slot.text.as_deref().unwrap_or("░").chars() {
                let columns = console::measure_text_width(character.encode_utf8(&mut [0; 4]));
                if character == '\n' || column + columns >= width {
                    picture.push(String::new());
                    column = 0;
                }
                if !character.is_control()
                    && let Some(line) = picture.last_mut()
                {
                    line.push_str(&slot.style.apply_to(character).to_string());
                    column += columns;
                }
            }
        }
        picture.push(status.to_owned());
        // Only what fits on the screen can be cleared again.
        let first = picture.len().saturating_sub(height.saturating_sub(1));
        let visible = &picture[first..];
        self.term.clear_last_lines(self.lines)?;
        self.term.write_line(&visible.join("\n"))?;
        self.lines = visible.len();
        self.drawn = Instant::now();
        Ok(())
    }
}

fn confidence_style(probability: f32) -> Style {
    let color = match probability {
        p if p >= 0.9 => Color::Green,
        p if p >= 0.5 => Color::Cyan,
        p if p >= 0.2 => Color::Yellow,
        _ => Color::Red,
    };
    Style::new().fg(color)
}
