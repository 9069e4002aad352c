use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<PretrainConfig, String> {
    PretrainConfig::parse(text, Path::new("pretrain.toml")).map_err(|error| error.to_string())
}

#[test]
fn a_wrong_key_or_value_is_an_error_that_names_it() {
    for (text, word) in [
        ("spann = 10", "spann"),
        ("[mask]\nspann = 10", "spann"),
        ("[mask]\nshare = 1.5", "`mask.share`"),
        ("[mask]\nshare = nan", "`mask.share`"),
        ("[mask]\nunit = \"seconds\"", "seconds"),
        ("[model]\nnum_attention_heads = 7", "`model.num_attention_heads`"),
        ("[model]\nnormalize = \"none\"", "none"),
        ("[quantizer]\ncodes = 1", "`quantizer.codes`"),
        (
            "[quantizer]\ncodebooks = 9223372036854775807",
            "`quantizer.codebooks`",
        ),
        ("[data]\nseconds_max = 61.0", "`data.seconds_max`"),
        ("[optimizer]\nlearning_rate = 0.0", "`optimizer.learning_rate`"),
        ("[augment]\nnoise = 2.0", "`augment.noise`"),
        (
            "[model]\nhidden_size = 16384\nintermediate_size = 131072\nnum_hidden_layers = 256",
            "parameters, expected at most",
        ),
    ] {
        let message = parse(text).unwrap_err();
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn the_defaults_are_the_paper_s() {
    let config = parse("").unwrap();

    assert_eq!(config, PretrainConfig::default());
    let (model, optimizer) = (&config.model, &config.optimizer);
    assert_eq!(
        (
            model.num_hidden_layers,
            model.hidden_size,
            model.num_attention_heads
        ),
        (24, 768, 8)
    );
    assert_eq!(
        (
            config.quantizer.codebooks,
            config.quantizer.codes,
            config.quantizer.width
        ),
        (16, 8192, 16)
    );
    assert_eq!(
        (config.mask.span, config.mask.share, config.mask.noise),
        (10, 0.4, 0.1)
    );
    assert_eq!(
        (
            optimizer.learning_rate,
            optimizer.warmup_steps,
            optimizer.steps_max
        ),
        (5e-4, 50_000, 500_000)
    );
    assert_eq!(
        (optimizer.weight_decay, optimizer.decay),
        (0.01, Decay::Transformer)
    );
}

#[test]
fn the_shipped_settings_parse_and_the_paper_s_name_every_default() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/pretrain");
    let small = PretrainConfig::load(&folder.join("small.toml")).unwrap();
    let paper = PretrainConfig::load(&folder.join("paper.toml")).unwrap();

    assert!(small.model.hidden_size < paper.model.hidden_size);
    let data = PretrainDataConfig {
        train: paper.data.train.clone(),
        valid: paper.data.valid.clone(),
        ..PretrainDataConfig::default()
    };
    let expected = PretrainConfig {
        run: paper.run.clone(),
        output: paper.output.clone(),
        data,
        ..PretrainConfig::default()
    };
    assert_eq!(paper, expected);
}

#[test]
fn settings_survive_being_written_and_read_again() {
    let config = PretrainConfig {
        minutes_max: Some(2.0),
        ..PretrainConfig::default()
    };

    assert_eq!(parse(&toml::to_string(&config).unwrap()), Ok(config));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_number_in_any_key_is_taken_or_refused(table in 0usize..4, key in 0usize..12, whole in any::<i64>(), real in any::<f64>()) {
        let tables = ["model", "quantizer", "mask", "optimizer"];
        let keys = ["hidden_size", "num_hidden_layers", "codes", "codebooks", "span", "share", "learning_rate", "steps_max",
            "max_source_positions", "width", "subsampling_channels", "num_mel_bins"];
        let _ = parse(&format!("[{}]\n{} = {whole}\n", tables[table], keys[key]));
        let _ = parse(&format!("[{}]\n{} = {real:?}\n", tables[table], keys[key]));
    }
}
