use super::*;
use crate::nn::kv_cache::{KvCache, KvCacheShape};
use proptest::prelude::*;
use tch::Device;

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn distance(found: &Tensor, right: &Tensor) -> f64 {
    let (found, right) = (found.to_kind(Kind::Double), right.to_kind(Kind::Double));
    ((found - &right).norm() / (right.norm() + 1e-30)).double_value(&[])
}

/// The largest error of `input · weightᵀ` beyond `rounding` of the value itself, as a share of the sum of the
/// products' absolute values: of two that cancel each other, little is left to compare with.
fn product_error(found: &Tensor, input: &Tensor, weight: &Tensor, rounding: f64) -> f64 {
    let (input, weight) = (input.to_kind(Kind::Double), weight.to_kind(Kind::Double));
    let right = input.linear(&weight, None::<&Tensor>);
    let scale = input.abs().linear(&weight.abs(), None::<&Tensor>);
    let error = (found.to_kind(Kind::Double) - &right).abs() - right.abs() * rounding;
    (error / (scale + 1e-30)).max().double_value(&[])
}

fn append(buffer: &mut Tensor, slots: &[usize], positions: &[i64], new: &Tensor) -> bool {
    // SAFETY: the tests' buffers are used on one thread, and no view of them lives through the call.
    unsafe { append_kv(buffer, slots, positions, new) }
}

#[test]
fn keys_that_lie_in_the_buffer_itself_are_left_to_libtorch() {
    let _no_grad = tch::no_grad_guard();
    let mut buffer = Tensor::zeros([2, 1, 3, 8], F32);
    let inside = buffer.narrow(0, 1, 1).narrow(2, 0, 1); // [1, 1, 1, 8]

    assert!(!append(&mut buffer, &[1], &[0], &inside));
    assert!(append(&mut buffer, &[1], &[0], &inside.copy()));
}

#[test]
fn the_exponential_is_within_two_units_in_the_last_place() {
    let mut worst = 0.0f64;
    for step in 0..870_000 {
        let x = -(step as f32) * 1e-4;
        let right = f64::from(x).exp();
        worst = worst.max((f64::from(exp(x)) - right).abs() / right);
    }
    assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn the_largest_come_in_order_and_the_sum_of_exponentials_is_that_of_libtorch() {
    let _no_grad = tch::no_grad_guard();
    tch::manual_seed(4);
    let numbers = Tensor::randn([5003], F32) * 9.0;
    let plain = Vec::<f32>::try_from(&numbers).unwrap();

    let found: Vec<i64> = largest(&plain, 32).into_iter().map(|at| at as i64).collect();

    let (_, right) = numbers.topk(32, 0, true, true);
    assert_eq!(found, Vec::<i64>::try_from(right).unwrap());
    assert_eq!(largest(&[1.0, 3.0, 3.0, f32::NEG_INFINITY], 9), [1, 2, 0, 3]);
    assert!(largest(&[1.0], 0).is_empty() && largest(&[], 3).is_empty());
    for (count, length) in [(1, 31), (4, 5003), (40, 33), (40, 97)] {
        let rounded: Vec<f32> = plain[..length].iter().map(|value| value.round()).collect();
        let mut order: Vec<usize> = (0..length).collect();
        // Equals stay in order.
        order.sort_by(|one, other| rounded[*other].partial_cmp(&rounded[*one]).unwrap());
        order.truncate(count);
        assert_eq!(largest(&rounded, count), order, "{count} of {length}");
    }
    let right = numbers
        .to_kind(Kind::Double)
        .logsumexp(0, false)
        .double_value(&[]);
    assert!((f64::from(log_sum_exp(&plain)) - right).abs() < 1e-5);
    assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
    assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.0]), 2.0);
    for at in [0, 15, 16, 39] {
        let mut values = [-200.0; 40];
        values[at] = 90.0; // its exponential is no f32
        assert_eq!(log_sum_exp(&values), 90.0, "the largest at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_norm_is_that_of_libtorch(rows in 1i64..5, width in 1i64..200, seed in 0i64..1000) {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(seed);
        let (hidden, weight) = (Tensor::randn([rows, 1, width], F32) * 3.0, Tensor::randn([width], F32));
        for dtype in [Kind::Float, Kind::BFloat16] {
            let (hidden, weight) = (hidden.to_kind(dtype), weight.to_kind(dtype));

            let found = rms_norm(&hidden, &weight, 1e-5).unwrap();

            let right = hidden.to_kind(Kind::Float).rms_norm([width], Some(&weight.to_kind(Kind::Float)), 1e-5);
            prop_assert_eq!((found.size(), found.kind()), (hidden.size(), dtype));
            let bound = if dtype == Kind::Float { 1e-6 } else { 4e-3 };
            prop_assert!(distance(&found, &right) < bound);
        }
    }

    #[test]
    fn products_of_a_few_rows_are_those_of_libtorch_in_f64(
        rows in 1i64..14, inputs in 1i64..150, outputs in 1i64..40, seed in 0i64..1000,
    ) {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(seed);
        let input = Tensor::randn([rows, inputs], F32);
        let floats = Tensor::randn([outputs, inputs], F32);
        let halves = floats.to_kind(Kind::BFloat16);
        let qweight = Tensor::randint_low(-127, 128, [outputs, inputs], (Kind::Int8, Device::Cpu));
        let scales = Tensor::rand([outputs], F32);

        let found = [
            multiply(&input, &floats).unwrap(),
            multiply(&input, &halves).unwrap(),
            multiply_qweight(&input, &qweight, &scales).unwrap(),
        ];

        let decoded = qweight.to_kind(Kind::Double) * scales.to_kind(Kind::Double).unsqueeze(1);
        for (found, weight) in found.iter().zip([floats, halves, decoded]) {
            prop_assert_eq!(found.size(), [rows, outputs]);
            prop_assert!(product_error(found, &input, &weight, 0.0) < 1e-6);
        }
    }

    #[test]
    fn products_of_bf16_rows_are_those_of_libtorch_in_f64_and_the_same_alone_and_in_company(
        rows in 1i64..40, inputs in 1i64..150, outputs in 1i64..40, seed in 0i64..1000,
    ) {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(seed);
        let input = Tensor::randn([rows, inputs], F32).to_kind(Kind::BFloat16);
        let weight = Tensor::randn([outputs, inputs], F32).to_kind(Kind::BFloat16);

        let found = multiply(&input, &weight).unwrap();

        prop_assert_eq!((found.size(), found.kind()), (vec![rows, outputs], Kind::BFloat16));
        prop_assert!(product_error(&found, &input, &weight, 2f64.powi(-8)) < 1e-6);
        for row in 0..rows {
            let alone = multiply(&input.narrow(0, row, 1), &weight).unwrap();
            prop_assert_eq!(alone.get(0), found.get(row));
        }
    }

    #[test]
    fn low_rank_updates_reach_their_columns_and_no_others(
        rows in 1i64..10, inputs in 1i64..100, rank in 1i64..20, outputs in 1i64..40, seed in 0i64..1000,
    ) {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(seed);
        let (first, width) = (3, outputs + 5);
        let (input, output) = (Tensor::randn([rows, 1, inputs], F32), Tensor::randn([rows, 1, width], F32));
        let (a, b) = (Tensor::randn([rank, inputs], F32), Tensor::randn([rank, outputs], F32));
        for dtype in [Kind::Float, Kind::BFloat16] {
            let (input, output, a) = (input.to_kind(dtype), output.to_kind(dtype), a.to_kind(dtype));

            let found = add_low_rank(&output, &input, &[LowRank { first: 3, a: &a, b: &b }]).unwrap();

            let exact = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let right = exact(&output);
            let mut columns = right.narrow(2, first, outputs);
            columns += exact(&input).matmul(&exact(&a).tr()).matmul(&exact(&b));
            prop_assert_eq!((found.size(), found.kind()), (output.size(), dtype));
            let bound = if dtype == Kind::Float { 1e-5 } else { 4e-3 };
            prop_assert!(distance(&found, &right) < bound);
        }
        let beyond = LowRank { first: 6, a: &a, b: &b };
        prop_assert!(add_low_rank(&output, &input, &[beyond]).is_none());
    }

    #[test]
    fn a_step_attends_as_libtorch_does_row_by_row(
        slots in prop::sample::subsequence(vec![0usize, 1, 2, 3, 4], 1..5).prop_shuffle(),
        lengths in prop::collection::vec(1i64..30, 5),
        (kv_heads, group) in (1i64..4, 1i64..4),
        half_width in 1i64..20,
        with_bias in any::<bool>(),
        seed in 0i64..1000,
    ) {
        let _no_grad = tch::no_grad_guard();
        tch::manual_seed(seed);
        let (width, heads) = (2 * half_width, kv_heads * group);
        let shape = KvCacheShape { layers: 1, slots: 5, heads: kv_heads, capacity: 40, prompt_capacity: None, head_dim: width };
        let mut cache = KvCache::new(shape, Kind::Float, Device::Cpu);
        for (slot, length) in lengths.iter().enumerate() {
            let random = || Tensor::randn([1, kv_heads, *length, width], F32);
            cache.begin(&[slot], &[*length]).unwrap();
            cache.store(0, &[slot], &random(), &random());
        }
        let rows = slots.len() as i64;
        let plan = cache.plan_step(&slots).unwrap();
        // Heads lie as a projection leaves them: position before head.
        let random = |heads: i64| Tensor::randn([rows, 1, heads, width], F32).transpose(1, 2);
        let (queries, keys, values) = (random(heads), random(kv_heads), random(kv_heads));
        cache.append(0, &plan, &keys, &values);
        let bias = with_bias.then(|| Tensor::randn([rows, heads, 1, plan.longest()], F32));

        let found = cache.attend(0, &plan, &queries, 0.3, bias.as_ref());
        // As it is computed where the kernels say no.
        let hidden = plan.mask().map(|mask| mask.logical_not());
        let whole_bias = match (&bias, &hidden) {
            (Some(bias), Some(hidden)) => Some(bias.masked_fill(hidden, f64::NEG_INFINITY)),
            _ => bias.as_ref().map(Tensor::shallow_clone),
        };
        let in_tensors = tch::with_grad(|| cache.attend(0, &plan, &queries, 0.3, whole_bias.as_ref()));

        prop_assert_eq!(found.size(), [rows, 1, heads * width]);
        prop_assert!(distance(&found, &in_tensors) < 1e-5);
        let (seen_keys, seen_values) = cache.seen(0, &plan);
        for (row, slot) in (0..).zip(&slots) {
            let length = lengths[*slot] + 1;
            let of = |seen: &Tensor| {
                seen.get(row).narrow(1, 0, length).repeat_interleave_self_int(group, 0, None).to_kind(Kind::Double)
            };
            let (keys, values) = (of(&seen_keys), of(&seen_values)); // [N, T, head]
            let mut scores = queries.get(row).to_kind(Kind::Double).matmul(&keys.transpose(1, 2)) * 0.3; // [N, 1, T]
            if let Some(bias) = &bias {
                scores += bias.get(row).narrow(2, 0, length).to_kind(Kind::Double);
            }
            let right = scores.softmax(-1, Kind::Double).matmul(&values).reshape([1, heads * width]);
            prop_assert!(distance(&found.get(row), &right) < 1e-5);
            // What was appended is the last that is seen.
            prop_assert_eq!(seen_keys.get(row).select(1, length - 1), plan_row(&cache, &plan, row, *slot));
        }
    }
}

/// The newest keys of a row's slot, `[N_kv, head]`.
fn plan_row(cache: &KvCache, plan: &crate::nn::kv_cache::StepPlan, row: i64, slot: usize) -> Tensor {
    let (keys, _) = cache.seen(0, plan);
    keys.get(row).select(1, cache.length(slot))
}

#[test]
fn large_products_are_shared_among_threads() {
    let _no_grad = tch::no_grad_guard();
    tch::set_num_threads(3);
    for (rows, inputs, outputs) in [(1, 1024, 4099), (7, 515, 4098)] {
        let (input, weight) = (
            Tensor::randn([rows, inputs], F32),
            Tensor::randn([outputs, inputs], F32),
        );

        let found = multiply(&input, &weight).unwrap();

        assert!(distance(&found, &input.linear(&weight, None::<&Tensor>)) < 2e-6);
        let (input, weight) = (input.to_kind(Kind::BFloat16), weight.to_kind(Kind::BFloat16));
        let found = multiply(&input, &weight).unwrap();
        let right = input
            .to_kind(Kind::Double)
            .linear(&weight.to_kind(Kind::Double), None::<&Tensor>);
        assert!(distance(&found, &right) < 4e-3);
    }
}

#[test]
fn every_instruction_set_gives_the_same_products() {
    let _no_grad = tch::no_grad_guard();
    for (found, right) in product::by_every_instruction_set() {
        let distance = found
            .iter()
            .zip(&right)
            .map(|(found, right)| (found - right).abs())
            .fold(0.0, f32::max);
        assert!(distance < 1e-3, "{distance:e}");
    }
}

#[test]
fn what_the_kernels_are_not_made_for_is_left_to_libtorch() {
    let no_grad = tch::no_grad_guard();
    let (hidden, weight) = (Tensor::randn([2, 1, 8], F32), Tensor::randn([8], F32));
    let qweight = Tensor::zeros([4, 8], (Kind::Int8, Device::Cpu));
    let scales = Tensor::ones([4], F32);

    assert!(rms_norm(&hidden, &weight, 1e-5).is_some());
    assert!(multiply_qweight(&hidden, &qweight, &scales).is_some());
    assert!(
        rms_norm(&hidden.transpose(0, 1), &weight, 1e-5).is_none(),
        "two positions"
    );
    assert!(rms_norm(&hidden.expand([2, 1, 8], false).transpose(0, 2), &weight, 1e-5).is_none());
    assert!(rms_norm(&hidden.to_kind(Kind::Double), &weight, 1e-5).is_none());
    assert!(rms_norm(&Tensor::zeros([0, 1, 8], F32), &weight, 1e-5).is_none());
    assert!(rms_norm(&hidden, &Tensor::randn([7], F32), 1e-5).is_none());
    assert!(rms_norm(&Tensor::zeros([1 << 13, 1, 8], F32), &weight, 1e-5).is_none());
    assert!(multiply_qweight(&hidden, &qweight.narrow(1, 0, 7), &scales).is_none());
    assert!(multiply_qweight(&hidden, &qweight.view([2, 16]), &scales.narrow(0, 0, 2)).is_none());
    assert!(
        multiply(&hidden, &Tensor::zeros([2, 16], F32)).is_none(),
        "of another width"
    );
    let mut buffer = Tensor::zeros([2, 1, 3, 8], F32);
    let new = Tensor::ones([1, 1, 1, 8], F32);
    assert!(!append(&mut buffer, &[2], &[0], &new), "no such slot");
    assert!(!append(&mut buffer, &[0], &[-1], &new));
    assert!(!append(&mut buffer, &[0], &[3], &new), "no such position");
    assert!(!append(&mut buffer, &[0, 1], &[0], &new));
    assert_eq!(buffer.abs().max().double_value(&[]), 0.0);

    drop(no_grad); // gradients are recorded
    assert!(rms_norm(&hidden, &weight, 1e-5).is_none());
    assert!(multiply_qweight(&hidden, &qweight, &scales).is_none());
    assert!(!append(&mut buffer, &[0], &[0], &new));
}
