//! `Role`: what a process does of the pipeline.

/// Which half of the pipeline a process runs. Processes of all roles share the registry's folder; one of them
/// keeps the samples and trains, any number answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Answers requests, keeps labelled samples and trains on them.
    #[default]
    All,
    /// Answers requests, with the version that the registry names; takes no labels and no orders.
    Serving,
    /// Keeps labelled samples, takes orders and trains; answers no requests. Reads whole-file requests, so
    /// that corrections find their audio.
    Trainer,
}

impl Role {
    /// Whether it answers requests.
    pub fn answers(self) -> bool {
        self != Self::Trainer
    }

    /// Whether it keeps samples and trains on them.
    pub fn learns(self) -> bool {
        self != Self::Serving
    }

    /// In words, for the console page.
    pub fn words(self) -> &'static str {
        match self {
            Self::All => "answers and learns",
            Self::Serving => "answers",
            Self::Trainer => "learns",
        }
    }
}
