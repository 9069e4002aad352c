use super::config::parse_peft;
use super::*;

fn sites() -> Vec<LoraSite> {
    let site = |path: &str, inputs, outputs| LoraSite {
        path: path.to_owned(),
        inputs,
        outputs,
    };
    vec![
        site("model.layers.0.self_attn.q_proj", 6, 4),
        site("model.layers.0.self_attn.k_proj", 6, 2),
        site("model.layers.1.self_attn.q_proj", 6, 4),
    ]
}

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 3.0,
        dropout: 0.0,
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    }
}

fn set(targets: &[&str]) -> LoraSet {
    LoraSet::new(config(targets), &sites(), Device::Cpu).unwrap()
}

fn fill(set: &LoraSet) {
    let _no_grad = tch::no_grad_guard();
    for mut tensor in set.parameters().into_values() {
        let _ = tensor.normal_(0.0, 1.0);
    }
}

#[test]
fn names_are_those_of_peft_and_only_targets_are_there() {
    let names: Vec<String> = set(&["q_proj"]).parameters().into_keys().collect();

    assert_eq!(
        names,
        [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
        ]
    );
}

#[test]
fn a_fresh_set_has_b_zero_and_a_within_the_bound_of_a_linear_layer() {
    let set = set(&["q_proj"]);

    for (name, tensor) in set.parameters() {
        let largest = tensor.abs().max().double_value(&[]);
        if name.ends_with("lora_B.weight") {
            assert_eq!(largest, 0.0);
        } else {
            assert!(largest > 0.0 && largest <= 1.0 / 6f64.sqrt(), "{largest}");
        }
    }
}

#[test]
fn a_frozen_copy_adds_to_a_few_rows_what_its_deltas_are() {
    let set = set(&["q_proj"]);
    fill(&set);
    let _no_grad = tch::no_grad_guard();
    let frozen = set.snapshot(Kind::Float, Device::Cpu).unwrap();
    let input = Tensor::randn([3, 1, 6], (Kind::Float, Device::Cpu));
    let output = Tensor::randn([3, 1, 6], (Kind::Float, Device::Cpu));
    let sites = &sites()[..2];

    let added = frozen.add_to_few(sites, &input, &output).unwrap();

    let delta = set.delta(&sites[0].path, &input).unwrap();
    let expected = Tensor::cat(&[output.narrow(2, 0, 4) + delta, output.narrow(2, 4, 2)], 2);
    assert!((added - expected).abs().max().double_value(&[]) < 1e-5);
    assert_eq!(
        frozen.add_to_few(&sites[1..], &input, &output).unwrap(),
        output,
        "no adapter"
    );
    assert!(set.add_to_few(sites, &input, &output).is_none(), "in training");
    assert!(
        frozen
            .add_to_few(
                sites,
                &Tensor::zeros([9000, 6], (Kind::Float, Device::Cpu)),
                &output
            )
            .is_none()
    );
}

#[test]
fn the_delta_is_scaled_b_a_x_and_reaches_only_targets() {
    let set = set(&["layers.1.self_attn.q_proj"]);
    fill(&set);
    let parameters = set.parameters();
    let prefix = "base_model.model.model.layers.1.self_attn.q_proj";
    let a = &parameters[&format!("{prefix}.lora_A.weight")];
    let b = &parameters[&format!("{prefix}.lora_B.weight")];
    let input = Tensor::randn([5, 6], (Kind::Float, Device::Cpu));

    let delta = set.delta("model.layers.1.self_attn.q_proj", &input).unwrap();

    let expected = input.matmul(&a.tr()).matmul(&b.tr()) * 1.5;
    assert!((delta - expected).abs().max().double_value(&[]) < 1e-5);
    assert!(set.delta("model.layers.0.self_attn.q_proj", &input).is_none());
}

#[test]
fn saving_and_opening_gives_the_same_numbers() {
    let set = set(&["q_proj", "k_proj"]);
    fill(&set);
    let folder = tempfile::tempdir().unwrap();
    set.save(folder.path(), "base").unwrap();

    let opened = LoraSet::open(folder.path(), &sites(), Device::Cpu).unwrap();

    assert_eq!(opened.config(), set.config());
    let (saved, opened) = (set.parameters(), opened.parameters());
    assert_eq!(saved.len(), opened.len());
    for (name, tensor) in saved {
        assert!(tensor.equal(&opened[&name]), "{name}");
        assert!(opened[&name].requires_grad());
    }
}

#[test]
fn a_folder_that_does_not_fit_is_refused_with_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    set(&["q_proj", "k_proj"]).save(folder.path(), "base").unwrap();

    let error = LoraSet::open(folder.path(), &sites()[..2], Device::Cpu).unwrap_err();

    assert!(
        error.to_string().contains("layers.1.self_attn.q_proj.lora_A"),
        "{error}"
    );
}

#[test]
fn methods_that_are_not_done_here_are_refused_by_the_keys_name() {
    let base = serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj"], "rank_pattern": {}, "use_dora": false, "unknown": 1});
    let parse = |config: &serde_json::Value| parse_peft(&config.to_string(), Path::new("a.json"));
    assert!(parse(&base).is_ok());
    for (key, value) in [
        ("peft_type", serde_json::json!("IA3")),
        ("bias", serde_json::json!("all")),
        ("use_dora", serde_json::json!(true)),
        ("use_rslora", serde_json::json!(true)),
        ("use_something_new", serde_json::json!(true)),
        ("rank_pattern", serde_json::json!({"q_proj": 4})),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("target_modules", serde_json::json!("all-linear")),
    ] {
        let mut config = base.clone();
        config[key] = value;
        match parse(&config) {
            Err(LoraError::Unsupported { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn settings_out_of_range_and_unknown_targets_are_refused() {
    let make = |change: &dyn Fn(&mut LoraConfig)| {
        let mut config = config(&["q_proj"]);
        change(&mut config);
        LoraSet::new(config, &sites(), Device::Cpu).map(|_| ())
    };
    assert!(make(&|_| ()).is_ok());
    assert!(matches!(
        make(&|it| it.rank = 0),
        Err(LoraError::Setting { key: "rank", .. })
    ));
    assert!(matches!(
        make(&|it| it.alpha = f64::NAN),
        Err(LoraError::Setting { key: "alpha", .. })
    ));
    assert!(matches!(
        make(&|it| it.dropout = 1.0),
        Err(LoraError::Setting { key: "dropout", .. })
    ));
    let error = make(&|it| it.targets = vec!["proj".to_owned()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`proj`") && error.contains("k_proj, q_proj"),
        "{error}"
    );
}

#[test]
fn without_targets_queries_and_values_are_meant_by_the_models_own_names() {
    let site = |path: &str| LoraSite {
        path: path.to_owned(),
        inputs: 6,
        outputs: 4,
    };
    let set = LoraSet::new(config(&[]), &sites(), Device::Cpu).unwrap();
    assert_eq!(set.config().targets, ["q_proj"]);
    assert_eq!(set.sites().len(), 2);
    assert_eq!(config(&[]).parameter_count(&sites()).unwrap(), 2 * 2 * (6 + 4));

    let names = [
        "SelfAttention.q",
        "SelfAttention.k",
        "EncDecAttention.v",
        "EncDecAttention.o",
    ];
    let t5 = names.map(|name| site(&format!("decoder.block.0.layer.0.{name}")));
    let set = LoraSet::new(config(&[]), &t5, Device::Cpu).unwrap();
    assert_eq!(set.config().targets, ["q", "v"]);
    assert_eq!(set.sites().len(), 2);
    let folder = tempfile::tempdir().unwrap();
    set.save(folder.path(), "base").unwrap();
    let written = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
    assert!(written.contains("SEQ_2_SEQ_LM"), "{written}");

    assert!(matches!(
        LoraSet::new(config(&[]), &[site("decoder.wo")], Device::Cpu),
        Err(LoraError::Target { .. })
    ));
}

#[test]
fn a_snapshot_does_not_follow_later_training() {
    let set = set(&["q_proj"]);
    fill(&set);
    let input = Tensor::randn([1, 6], (Kind::Float, Device::Cpu));
    let path = "model.layers.0.self_attn.q_proj";
    let snapshot = set.snapshot(Kind::Float, Device::Cpu).unwrap();
    let before = snapshot.delta(path, &input).unwrap();
    assert!(before.equal(&set.delta(path, &input).unwrap()));

    fill(&set);

    assert!(snapshot.delta(path, &input).unwrap().equal(&before));
    assert!(!set.delta(path, &input).unwrap().equal(&before));
    assert!(
        snapshot
            .parameters()
            .values()
            .all(|tensor| !tensor.requires_grad())
    );
}

#[test]
fn dropout_acts_in_training_only() {
    let mut set = LoraSet::new(
        LoraConfig {
            dropout: 0.5,
            ..config(&["q_proj"])
        },
        &sites(),
        Device::Cpu,
    )
    .unwrap();
    fill(&set);
    let input = Tensor::ones([1, 6], (Kind::Float, Device::Cpu));
    let path = "model.layers.0.self_attn.q_proj";
    let serving = set.delta(path, &input).unwrap();
    assert!(serving.equal(&set.delta(path, &input).unwrap()));

    set.set_training(true);

    let several: Vec<Tensor> = (0..8).map(|_| set.delta(path, &input).unwrap()).collect();
    assert!(several.iter().any(|delta| !delta.equal(&several[0])));
}
