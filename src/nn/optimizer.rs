//! AdamW whose moments are ours, so that a run can be stopped, saved and resumed exactly.
//!
//! torch's own optimiser (through tch) cannot give its state away. This one is plain tensor operations over a
//! few named f32 tensors; next to a forward pass through a language model its cost is nothing.
//!
//! Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101), in the form of
//! `torch.optim.AdamW`: decay first, then moments, then the bias-corrected step.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

/// Settings of [`AdamW`] that hold for a whole stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.01,
        }
    }
}

/// One variable under training.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the checkpoint.
    pub name: String,
    /// The leaf tensor, f32, requiring gradient.
    pub tensor: Tensor,
    /// Multiplies the stage's learning rate.
    pub rate_factor: f64,
    /// Multiplies the stage's weight decay; 0 for gains, biases and scalars.
    pub decay_factor: f64,
}

/// The moments of one variable.
#[derive(Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
    steps: i64,
}

/// Why an optimiser could not take over a saved state.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum OptimizerError {
    /// The saved state and the variables differ.
    #[error("optimiser state does not fit the variables: {}", problems.join("; "))]
    State {
        /// Every difference found.
        problems: Vec<String>,
    },
    /// Two variables have one name.
    #[error("variable `{name}` was given to the optimiser twice")]
    Duplicate {
        /// The name.
        name: String,
    },
}

/// AdamW over named variables.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Vec<Parameter>,
    moments: Vec<Moments>,
}

impl AdamW {
    /// Takes the variables over, with moments at zero.
    ///
    /// # Errors
    /// [`OptimizerError::Duplicate`] when two variables have one name.
    pub fn new(config: AdamWConfig, parameters: Vec<Parameter>) -> Result<Self, OptimizerError> {
        let mut names = std::collections::HashSet::new();
        for parameter in &parameters {
            if !names.insert(parameter.name.as_str()) {
                return Err(OptimizerError::Duplicate {
                    name: parameter.name.clone(),
                });
            }
        }
        let moments = parameters
            .iter()
            .map(|parameter| Moments {
                first: parameter.tensor.zeros_like().detach(),
                second: parameter.tensor.zeros_like().detach(),
                steps: 0,
            })
            .collect();
        Ok(Self {
            config,
            parameters,
            moments,
        })
    }

    /// The variables, in the order given.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Forgets the gradients of all variables.
    pub fn zero_grad(&mut self) {
        for parameter in &mut self.parameters {
            parameter.tensor.zero_grad();
        }
    }

    /// Global L2 norm of all gradients, one device-to-host copy. Variables without a gradient count as zero.
    pub fn grad_norm(&self) -> f64 {
        let _guard = tch::no_grad_guard();
        let squares: Vec<Tensor> = self
            .parameters
            .iter()
            .map(|parameter| parameter.tensor.grad())
            .filter(Tensor::defined)
            .map(|grad| grad.square().sum(Kind::Float))
            .collect();
        if squares.is_empty() {
            return 0.0;
        }
        Tensor::stack(&squares, 0)
            .sum(Kind::Double)
            .sqrt()
            .double_value(&[])
    }

    /// Scales all gradients by `factor`.
    pub fn scale_grads(&mut self, factor: f64) {
        let _guard = tch::no_grad_guard();
        for parameter in &self.parameters {
            let mut grad = parameter.tensor.grad();
            if grad.defined() {
                let _ = grad.g_mul_scalar_(factor);
            }
        }
    }

    /// One update at learning rate `rate`. Variables without a gradient stay as they are.
    pub fn step(&mut self, rate: f64) {
        let _guard = tch::no_grad_guard();
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        for (parameter, moments) in self.parameters.iter_mut().zip(&mut self.moments) {
            let grad = parameter.tensor.grad();
            if !grad.defined() {
                continue;
            }
            let rate = rate * parameter.rate_factor;
            let decay = weight_decay * parameter.decay_factor;
            moments.steps += 1;
            let steps = i32::try_from(moments.steps).unwrap_or(i32::MAX);
            let correction1 = 1.0 - beta1.powi(steps);
            let correction2 = 1.0 - beta2.powi(steps);

            if decay != 0.0 {
                let _ = parameter.tensor.g_mul_scalar_(1.0 - rate * decay);
            }
            let _ = moments
                .first
                .g_mul_scalar_(beta1)
                .g_add_(&(&grad * (1.0 - beta1)));
            let _ = moments
                .second
                .g_mul_scalar_(beta2)
                .g_add_(&(grad.square() * (1.0 - beta2)));
            let denominator = (&moments.second / correction2).sqrt() + eps;
            let change = &moments.first / denominator * (-rate / correction1);
            let _ = parameter.tensor.g_add_(&change);
        }
    }

    /// The state by name: `NAME.first`, `NAME.second` (f32, shape of the variable) and `NAME.steps` (f32,
    /// scalar).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::new();
        for (parameter, moments) in self.parameters.iter().zip(&self.moments) {
            state.insert(format!("{}.first", parameter.name), moments.first.shallow_clone());
            state.insert(
                format!("{}.second", parameter.name),
                moments.second.shallow_clone(),
            );
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^24 steps")]
            let steps = Tensor::from(moments.steps as f32);
            state.insert(format!("{}.steps", parameter.name), steps);
        }
        state
    }

    /// Takes over a state that [`AdamW::state`] gave.
    ///
    /// # Errors
    /// [`OptimizerError::State`] with every missing, unexpected or misshapen entry; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), OptimizerError> {
        let mut problems = Vec::new();
        let mut expected = std::collections::HashSet::new();
        for parameter in &self.parameters {
            for (suffix, shape) in [
                ("first", parameter.tensor.size()),
                ("second", parameter.tensor.size()),
                ("steps", vec![]),
            ] {
                let name = format!("{}.{suffix}", parameter.name);
                match state.get(&name) {
                    None => problems.push(format!("`{name}` is missing")),
                    Some(tensor) if tensor.size() != shape => {
                        problems.push(format!(
                            "`{name}` has shape {:?}, expected {shape:?}",
                            tensor.size()
                        ));
                    }
                    Some(_) => {}
                }
                expected.insert(name);
            }
        }
        problems.extend(
            state
                .keys()
                .filter(|name| !expected.contains(*name))
                .map(|name| format!("`{name}` is unexpected")),
        );
        if !problems.is_empty() {
            return Err(OptimizerError::State { problems });
        }
        let _guard = tch::no_grad_guard();
        for (parameter, moments) in self.parameters.iter().zip(&mut self.moments) {
            moments.first.copy_(&state[&format!("{}.first", parameter.name)]);
            moments
                .second
                .copy_(&state[&format!("{}.second", parameter.name)]);
            #[expect(clippy::cast_possible_truncation, reason = "a whole number, as saved")]
            let steps = state[&format!("{}.steps", parameter.name)].double_value(&[]) as i64;
            moments.steps = steps;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn, nn::OptimizerConfig};

    fn variable(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn parameter(name: &str, tensor: &Tensor) -> Parameter {
        Parameter {
            name: name.into(),
            tensor: tensor.shallow_clone(),
            rate_factor: 1.0,
            decay_factor: 1.0,
        }
    }

    fn loss(w: &Tensor) -> Tensor {
        (w.square() * Tensor::from_slice(&[1.0f32, 3.0, 0.5])).sum(Kind::Float) + w.sin().sum(Kind::Float)
    }

    #[test]
    fn twenty_steps_equal_those_of_torch() {
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.05,
        };
        let ours = variable(&[1.0, -2.0, 0.3]);
        let mut optimizer = AdamW::new(config, vec![parameter("w", &ours)]).unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        let theirs = store
            .root()
            .var_copy("w", &Tensor::from_slice(&[1.0f32, -2.0, 0.3]));
        let mut reference = nn::adamw(0.9, 0.99, 0.05).build(&store, 0.03).unwrap();

        for _ in 0..20 {
            optimizer.zero_grad();
            loss(&ours).backward();
            optimizer.step(0.03);
            reference.backward_step(&loss(&theirs));
        }

        let difference = (&ours - &theirs).abs().max().double_value(&[]);
        assert!(difference < 2e-6, "{difference}");
    }

    #[test]
    fn a_saved_state_continues_exactly() {
        let (a, b) = (variable(&[1.0, -2.0, 0.3]), variable(&[1.0, -2.0, 0.3]));
        let mut first = AdamW::new(AdamWConfig::default(), vec![parameter("w", &a)]).unwrap();
        let mut second = AdamW::new(AdamWConfig::default(), vec![parameter("w", &b)]).unwrap();
        let run = |optimizer: &mut AdamW, w: &Tensor, steps: usize| {
            for _ in 0..steps {
                optimizer.zero_grad();
                loss(w).backward();
                optimizer.step(0.01);
            }
        };

        run(&mut first, &a, 10);
        run(&mut second, &b, 4);
        let saved = second
            .state()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.copy()))
            .collect();
        let c = b.detach().copy().set_requires_grad(true);
        let mut third = AdamW::new(AdamWConfig::default(), vec![parameter("w", &c)]).unwrap();
        third.load_state(&saved).unwrap();
        run(&mut third, &c, 6);

        assert_eq!(
            Vec::<f32>::try_from(&a).unwrap(),
            Vec::<f32>::try_from(&c).unwrap()
        );
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_with_every_difference() {
        let w = variable(&[1.0, 2.0]);
        let mut optimizer = AdamW::new(AdamWConfig::default(), vec![parameter("w", &w)]).unwrap();
        let state = BTreeMap::from([
            (
                "w.first".to_owned(),
                Tensor::zeros([3], (Kind::Float, Device::Cpu)),
            ),
            (
                "v.first".to_owned(),
                Tensor::zeros([2], (Kind::Float, Device::Cpu)),
            ),
            ("w.steps".to_owned(), Tensor::from(1f32)),
        ]);

        let error = optimizer.load_state(&state).unwrap_err().to_string();

        for part in [
            "`w.first` has shape [3], expected [2]",
            "`w.second` is missing",
            "`v.first` is unexpected",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn rate_and_decay_factors_apply_to_their_variable_alone() {
        let (a, b) = (variable(&[1.0]), variable(&[1.0]));
        let mut slow = parameter("b", &b);
        slow.rate_factor = 0.1;
        let mut optimizer = AdamW::new(
            AdamWConfig {
                weight_decay: 0.0,
                ..Default::default()
            },
            vec![parameter("a", &a), slow],
        )
        .unwrap();

        (&a * 2.0 + &b * 2.0).sum(Kind::Float).backward();
        optimizer.step(0.1);

        assert!((a.double_value(&[0]) - 0.9).abs() < 1e-5);
        assert!((b.double_value(&[0]) - 0.99).abs() < 1e-5);
    }

    #[test]
    fn the_gradient_norm_spans_all_variables_and_can_be_scaled() {
        let (a, b) = (variable(&[1.0]), variable(&[1.0]));
        let mut optimizer = AdamW::new(
            AdamWConfig::default(),
            vec![parameter("a", &a), parameter("b", &b)],
        )
        .unwrap();

        (&a * 3.0 + &b * 4.0).sum(Kind::Float).backward();
        let before = optimizer.grad_norm();
        optimizer.scale_grads(0.5);

        assert!((before - 5.0).abs() < 1e-6);
        assert!((optimizer.grad_norm() - 2.5).abs() < 1e-6);
    }
}
