use super::*;

const KIND: (Kind, Device) = (Kind::Float, Device::Cpu);

fn cache(slots: i64, prompt_capacity: Option<i64>) -> KvCache {
    let shape = KvCacheShape {
        layers: 2,
        slots,
        heads: 1,
        capacity: 8,
        prompt_capacity,
        head_dim: 1,
    };
    KvCache::new(shape, Kind::Float, Device::Cpu)
}

/// Keys `first, first + 1, …`, `[1, 1, length, 1]`.
fn counted(first: f64, length: i64) -> Tensor {
    (Tensor::arange(length, KIND) + first).view([1, 1, length, 1])
}

fn begin(cache: &mut KvCache, slot: usize, first: f64, length: i64) {
    cache.begin(&[slot], &[length]).unwrap();
    for layer in 0..2 {
        let keys = counted(first + layer as f64 * 100.0, length);
        cache.store(layer, &[slot], &keys, &-&keys);
    }
}

fn step(cache: &mut KvCache, slots: &[usize], keys: &[f32]) -> Vec<Vec<f32>> {
    let plan = cache.plan_step(slots).unwrap();
    let new = Tensor::from_slice(keys).view([-1, 1, 1, 1]);
    let mut seen = Vec::new();
    for layer in 0..2 {
        cache.append(layer, &plan, &(&new + layer as f64 * 100.0), &-&new);
        let (keys, values) = cache.seen(layer, &plan);
        if layer == 1 {
            assert_eq!(keys.size(), values.size());
            for row in 0..slots.len() as i64 {
                let length = cache.length(slots[row as usize]) + 1;
                let own = keys.get(row).narrow(1, 0, length) - 100.0;
                seen.push(Vec::<f32>::try_from(own.reshape([-1])).unwrap());
            }
        }
    }
    cache.advance(&plan);
    seen
}

fn prompts(cache: &KvCache, slots: &[usize]) -> Vec<Vec<f32>> {
    let plan = cache.plan_step(slots).unwrap();
    let buffer = cache.prompt.as_ref().unwrap();
    let (keys, _) = buffer.seen(1, &plan, plan.prompt.as_ref().unwrap());
    let valid = plan
        .prompt
        .as_ref()
        .and_then(|view| view.mask.as_ref())
        .map(|mask| mask.view([slots.len() as i64, -1]));
    (0..slots.len() as i64)
        .map(|row| {
            let own = keys.get(row).reshape([-1]) - 100.0;
            let own = match &valid {
                Some(valid) => own.masked_select(&valid.get(row)),
                None => own,
            };
            Vec::<f32>::try_from(own).unwrap()
        })
        .collect()
}

#[test]
fn slots_swap_and_copy_their_sequences_at_once() {
    let mut cache = cache(4, None);
    begin(&mut cache, 0, 10.0, 2);
    begin(&mut cache, 1, 20.0, 3);
    begin(&mut cache, 3, 40.0, 1);

    cache.reorder(&[0, 1, 2, 3], &[1, 0, 0, 3]).unwrap();

    assert_eq!([0, 1, 2, 3].map(|slot| cache.length(slot)), [3, 2, 2, 1]);
    assert_eq!(
        step(&mut cache, &[0, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0]),
        [
            vec![20.0, 21.0, 22.0, 1.0],
            vec![10.0, 11.0, 2.0],
            vec![10.0, 11.0, 3.0],
            vec![40.0, 4.0]
        ]
    );
}

#[test]
fn a_prompt_goes_with_its_sequence() {
    let mut cache = cache(3, Some(4));
    begin(&mut cache, 0, 10.0, 4);
    begin(&mut cache, 1, 20.0, 2);
    assert_eq!((cache.length(0), cache.remaining(0)), (0, 8));
    let _ = step(&mut cache, &[0, 1], &[1.0, 2.0]);

    cache.reorder(&[2, 0, 1], &[0, 1, 0]).unwrap();
    // The second time both slots have the prompt already.
    cache.reorder(&[1], &[2]).unwrap();

    assert_eq!(
        prompts(&cache, &[0, 2]),
        [vec![20.0, 21.0], vec![10.0, 11.0, 12.0, 13.0]]
    );
    assert_eq!(
        step(&mut cache, &[1, 0, 2], &[5.0, 6.0, 7.0]),
        [vec![1.0, 5.0], vec![2.0, 6.0], vec![1.0, 7.0]]
    );
}

#[test]
fn what_was_not_finite_does_not_outlive_a_reorder() {
    let mut cache = cache(2, None);
    begin(&mut cache, 0, f64::NAN, 6);
    begin(&mut cache, 1, 20.0, 2);

    cache.reorder(&[0], &[1]).unwrap();

    let plan = cache.plan_step(&[0]).unwrap();
    cache.append(0, &plan, &counted(0.0, 1), &counted(0.0, 1));
    let everything: f64 = cache.own.layers[0].0.get(0).sum(Kind::Float).double_value(&[]);
    assert_eq!(everything, 41.0);
}

#[test]
fn room_is_counted_together_or_apart() {
    assert!(cache(1, None).check_capacity(5, 3).is_ok());
    assert!(cache(1, None).check_capacity(6, 3).is_err());
    assert!(cache(1, Some(4)).check_capacity(4, 8).is_ok());
    assert!(cache(1, Some(4)).check_capacity(5, 1).is_err());
    assert!(cache(1, Some(4)).check_capacity(1, 9).is_err());
    assert!(cache(1, Some(4)).begin(&[0], &[5]).is_err());
}

#[test]
fn a_reorder_that_makes_no_sense_is_an_error() {
    let mut cache = cache(2, None);
    for (slots, sources) in [
        (&[0usize, 0][..], &[0usize, 1][..]),
        (&[2], &[0]),
        (&[0], &[2]),
        (&[0], &[]),
    ] {
        assert!(matches!(
            cache.reorder(slots, sources),
            Err(NnError::Shape { .. })
        ));
    }
}

#[test]
fn chunks_stand_one_behind_the_other_and_the_next_sequence_sees_nothing_of_them() {
    let mut cache = cache(2, None);
    begin(&mut cache, 1, 50.0, 3);
    let mut chunk = |first: f64, length| {
        let plan = cache.plan_chunk(0, length).unwrap();
        cache.store_chunk(1, &plan, &counted(first, length), &counted(-first, length));
        let (keys, values) = cache.seen_by_chunk(1, &plan);
        assert_eq!(values.size(), keys.size());
        assert_eq!(cache.length(0), plan.positions().start);
        cache.advance_chunk(&plan);
        Vec::<f32>::try_from(keys.reshape([-1])).unwrap()
    };

    assert_eq!(chunk(10.0, 3), [10.0, 11.0, 12.0]);
    assert_eq!(chunk(20.0, 2), [10.0, 11.0, 12.0, 20.0, 21.0]);
    assert_eq!(chunk(f64::NAN, 1).len(), 6);

    assert_eq!([cache.length(0), cache.length(1), cache.remaining(0)], [6, 3, 2]);
    // A chunk of which only the plan came about, and then a new sequence.
    cache.plan_chunk(0, 2).unwrap();
    let _ = cache.own.layers[1].0.get(0).narrow(1, 6, 2).fill_(f64::NAN);
    cache.clear(0);
    let plan = cache.plan_chunk(0, 1).unwrap();
    cache.store_chunk(1, &plan, &counted(7.0, 1), &counted(7.0, 1));
    cache.advance_chunk(&plan);
    let everything: f64 = cache.own.layers[1].0.get(0).sum(Kind::Float).double_value(&[]);
    assert_eq!((cache.length(0), everything), (1, 7.0));
}

#[test]
fn a_chunk_that_cannot_be_stored_is_an_error_and_changes_nothing() {
    let mut one = cache(2, None);
    begin(&mut one, 0, 10.0, 5);
    for (slot, count) in [(2, 1), (0, 0), (0, -3)] {
        assert!(matches!(one.plan_chunk(slot, count), Err(NnError::Shape { .. })));
    }
    for count in [4, i64::MAX] {
        let refused = one.plan_chunk(0, count);
        assert!(matches!(
            refused,
            Err(NnError::TooManyPositions { positions_max: 8, .. })
        ));
    }
    assert_eq!(one.length(0), 5);
    // An encoder-decoder's prompt is read both ways.
    assert!(matches!(
        cache(1, Some(4)).plan_chunk(0, 1),
        Err(NnError::Shape { .. })
    ));
}

#[test]
fn a_copied_prefix_begins_another_sequence() {
    let mut cache = cache(2, None);
    begin(&mut cache, 0, 10.0, 3);
    let _ = step(&mut cache, &[0], &[13.0]);
    begin(&mut cache, 1, 70.0, 6);
    let prefix = cache.prefix(0, 2).unwrap();
    cache.clear(0);

    cache.begin_with(1, &prefix).unwrap();

    assert_eq!((cache.length(1), prefix.positions()), (2, 2));
    assert_eq!(step(&mut cache, &[1], &[5.0]), [vec![10.0, 11.0, 5.0]]);
    assert!(cache.begin_with(2, &prefix).is_err(), "there is no such slot");
    for (slot, count) in [(1, 0), (1, 4), (2, 1)] {
        assert!(
            cache.prefix(slot, count).is_none(),
            "{count} positions of slot {slot}"
        );
    }
    let short = KvCacheShape {
        capacity: 1,
        layers: 2,
        slots: 1,
        heads: 1,
        prompt_capacity: None,
        head_dim: 1,
    };
    let mut short = KvCache::new(short, Kind::Float, Device::Cpu);
    assert!(short.begin_with(0, &prefix).is_err(), "it does not fit");
    assert_eq!(short.length(0), 0);
}

#[test]
fn a_prompt_in_a_buffer_of_its_own_has_no_prefix_to_copy() {
    let mut cache = cache(1, Some(4));
    begin(&mut cache, 0, 10.0, 4);
    let _ = step(&mut cache, &[0], &[1.0]);
    assert!(cache.prefix(0, 1).is_none());
}

#[test]
fn a_slot_that_is_named_several_times_gets_as_many_positions_and_each_sees_those_before_it() {
    let mut cache = cache(3, None);
    begin(&mut cache, 0, 10.0, 2);
    begin(&mut cache, 2, 20.0, 1);

    let plan = cache.plan_step(&[0, 2, 2, 2, 0]).unwrap();

    assert_eq!(Vec::<i64>::try_from(plan.positions()).unwrap(), [2, 1, 2, 3, 3]);
    let new = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0]).view([-1, 1, 1, 1]);
    cache.append(0, &plan, &new, &new);
    cache.append(1, &plan, &(&new + 100.0), &new);
    let (keys, _) = cache.seen(0, &plan);
    let mask = plan.mask().unwrap().view([5, -1]);
    let seen = |row: i64| {
        let own = keys.get(row).reshape([-1]).masked_select(&mask.get(row));
        Vec::<f32>::try_from(own).unwrap()
    };
    assert_eq!(seen(0), [10.0, 11.0, 1.0]);
    assert_eq!(seen(4), [10.0, 11.0, 1.0, 5.0]);
    assert_eq!(seen(1), [20.0, 2.0]);
    assert_eq!(seen(3), [20.0, 2.0, 3.0, 4.0]);
    cache.advance(&plan);
    assert_eq!([0, 1, 2].map(|slot| cache.length(slot)), [4, 0, 4]);

    cache.truncate(2, 2);
    assert_eq!(step(&mut cache, &[2, 0], &[7.0, 8.0])[0], [20.0, 2.0, 7.0]);
    assert!(cache.plan_step(&[0; 3]).is_ok());
    assert!(matches!(
        cache.plan_step(&[0; 4]),
        Err(NnError::TooManyPositions { .. })
    ));
    assert!(cache.plan_step(&[1, 3]).is_err(), "there are three slots");
}
