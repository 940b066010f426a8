use unmask::diffusion::Process;
use unmask::train::WindowStart;
use unmask::train::batch::{LONGEST_SPAN, Windows};
use unmask::train::draws::{Purpose, Stream};

use super::*;

#[test]
fn windows_begin_where_sentences_or_paragraphs_do() {
    let mut case = Case::new();
    let paragraph =
        "Ann ran (fast!). \"Stop,\" said Bob. \"Why?\" Then 3.5 miles went by\nEve saw it.\n";
    let documents = vec![paragraph.repeat(3); 20];
    fs::write(&case.config.data[0], documents.join("\n<|doc|>\n")).unwrap();
    let beginnings = |case: &Case| {
        let trainer = case.trainer();
        let data = trainer.data();
        let mut firsts = BTreeSet::new();
        for step in 0..40 {
            let batch = data.batch(&case.config, step).unwrap();
            for window in batch.clean.chunks(case.config.context) {
                let text = data.tokenizer.decode(window, false).unwrap();
                firsts.insert(text.trim_start().chars().take(4).collect::<String>());
            }
        }
        firsts
    };
    assert!(beginnings(&case).len() > 20);
    case.config.window_start = WindowStart::Sentence;
    let sentences = ["\"Sto", "\"Why", "Ann ", "Eve ", "Then"];
    assert!(beginnings(&case).iter().eq(sentences.iter()));
    case.config.window_start = WindowStart::Paragraph;
    assert!(beginnings(&case).iter().eq(["Ann ", "Eve "].iter()));

    case.config.steps = 1;
    case.run().unwrap();
    (case.config.resume, case.config.window_start) = (true, WindowStart::Sentence);
    assert!(case.fails().contains("cannot resume: window-start was"));
}

#[test]
fn spans_are_masked_together_as_often_as_slots_are_by_themselves() {
    let (context, count, time) = (64, 400, 0.3);
    let process = Process::absorbing(50, 0).unwrap();
    let batch = |share: f64| {
        let windows = Windows::whole(context, &vec![7; context * count]);
        let mut stream = Stream::new(3, Purpose::Step, 0);
        let times = vec![time; count];
        Batch::noise(
            windows,
            &times,
            &process,
            &Schedule::LogLinear,
            share,
            &mut stream,
        )
        .unwrap()
    };
    let masked = |batch: &Batch| batch.scored.len() as f64 / batch.tokens() as f64;
    // Places within windows at which a masked slot stands by one that is not.
    let borders = |batch: &Batch| {
        let windows = batch.noisy.chunks(context);
        let pairs = windows.flat_map(|window| window.windows(2));
        pairs.filter(|pair| pair[0] != pair[1]).count() as f64
    };
    let (alone, half, spans) = (batch(0.0), batch(0.5), batch(1.0));
    for batch in [&alone, &half, &spans] {
        // Of spans there are about 8 times fewer than of slots.
        assert!((masked(batch) - time).abs() < 0.03, "{}", masked(batch));
        assert!(
            batch
                .scored
                .iter()
                .all(|slot| batch.noisy[*slot as usize] == 0)
        );
    }
    let mean_length = (1 + LONGEST_SPAN) as f64 / 2.0;
    assert!(borders(&spans) < 1.2 * borders(&alone) / mean_length);
    let expected = (borders(&alone) + borders(&spans)) / 2.0;
    assert!((borders(&half) / expected - 1.0).abs() < 0.15);

    let mut case = Case::new();
    case.config.span_share = 0.5;
    let best = case.run().unwrap().progress().best.unwrap();
    assert!(best < 0.7 * 300f64.ln(), "{best}");
    (case.config.resume, case.config.span_share) = (true, 0.0);
    assert!(case.fails().contains("cannot resume: span-share was"));
    (case.config.resume, case.config.span_share) = (false, 1.5);
    assert!(case.fails().contains("span-share is 1.5; allowed: 0 to 1"));
    (case.config.process, case.config.span_share) = (ForwardProcess::Uniform, 0.5);
    assert!(
        case.fails()
            .contains("span-share is 0.5; allowed: 0 (with the process uniform")
    );
}
