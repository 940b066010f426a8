use super::*;

#[test]
fn bad_input_is_refused_with_its_reason() {
    let case = Case::new;
    let check = |case: Case, expected: &[&str]| {
        let error = case.fails();
        for part in expected {
            assert!(error.contains(part), "{error:?} should contain {part:?}");
        }
    };

    let empty = case();
    fs::write(&empty.config.data[0], "\n<|doc|>\n  \n").unwrap();
    check(empty, &["train.txt", "no documents"]);

    let binary = case();
    let mut bytes = text(3).into_bytes();
    bytes[17] = 0xff;
    fs::write(&binary.config.valid, bytes).unwrap();
    check(binary, &["valid.txt", "not UTF-8", "offset 17"]);

    let mut compressed = case();
    compressed.config.data = vec![compressed.path("train.txt.zst")];
    let bytes = zstd::encode_all(text(100).as_bytes(), 3).unwrap();
    fs::write(&compressed.config.data[0], &bytes[..bytes.len() / 2]).unwrap();
    check(compressed, &["cannot decompress", "train.txt.zst"]);

    let mut missing = case();
    missing.config.data.push(missing.path("nowhere.txt"));
    check(missing, &["cannot read", "nowhere.txt"]);

    let mut flat = case();
    flat.config.schedule = Schedule::geometric(1.0, 1.0).unwrap();
    check(
        flat,
        &["schedule is geometric", "along which slots are masked"],
    );

    let mut small = case();
    small.config.vocab_size = Some(200);
    check(small, &["vocab-size is 200", "259"]);

    let mut large = case();
    large.config.vocab_size = Some(5000);
    check(
        large,
        &["vocab-size is 5000", "tokens only", "use --vocab-size"],
    );

    let mut long = case();
    fs::write(&long.config.data[0], text(500)).unwrap();
    long.config.context = 8192;
    check(long, &["the training text is", "one window of 8192"]);

    let mut uncut = case();
    fs::write(
        &uncut.config.data[0],
        format!("Once.\n<|doc|>\n{}", text(500)),
    )
    .unwrap();
    uncut.config.refuse_long_documents = true;
    check(
        uncut,
        &[
            "document 2 of the training text is",
            "and the context 24: ",
            "--refuse-long-documents",
        ],
    );

    let mut longer = case();
    longer.config.context = 8193;
    check(longer, &["context is 8193; allowed: 2 to 8192"]);

    let mut wide = case();
    (wide.config.batch, wide.config.grad_accumulation) = (1 << 16, 1 << 14);
    check(
        wide,
        &["batch is 65536 (with grad-accumulation 16384 and context 24)"],
    );

    let mut heads = case();
    heads.config.heads = 3;
    check(heads, &["heads is 3 (with hidden 32)"]);

    let mut steps = case();
    steps.config.steps = 0;
    check(steps, &["steps is 0", "1 to"]);

    let mut nan = case();
    nan.config.lr = f64::NAN;
    check(nan, &["lr is NaN"]);

    let mut device = case();
    device.config.device = TrainDevice::Cuda(0);
    if !candle_core::utils::cuda_is_available() {
        check(device, &["device is cuda:0", "cpu"]);
    }

    let mut unwritable = case();
    fs::write(unwritable.path("file"), "").unwrap();
    unwritable.config.out = unwritable.path("file").join("out");
    check(unwritable, &["cannot create", "file"]);

    let mut nothing = case();
    nothing.config.resume = true;
    check(
        nothing,
        &["no training state to resume", "state.safetensors"],
    );

    let mut tokenizer = case();
    tokenizer.config.tokenizer = Some(tokenizer.path("valid.txt"));
    check(tokenizer, &["tokenizer", "valid.txt"]);
}
