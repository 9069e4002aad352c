//! What goes wrong, and when: drawn from a seed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use speechverse::util::random::SplitMix;

use crate::broker::Broker;
use crate::load::Asker;
use crate::process::{Flaw, SESSION, Serve, Site};
use crate::watch::{Outputs, Watch};

/// Longest that nothing at all may be answered while nothing is wrong.
const STILL_MAX: Duration = Duration::from_secs(90);
/// Longest that a labelled sample may take until it is stored, once all requests are answered.
const LABELS_MAX: Duration = Duration::from_secs(60);
/// Outcomes for which a process with a flaw is at work, at least.
const FLAWED_REQUESTS: usize = 40;
/// Stages that have requests in hand; each panics once.
const STAGES: [&str; 4] = ["ingest", "encode", "decode", "publish"];
/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// A process is killed and started again.
    Kill,
    /// One process becomes three, then two: one of them is asked to end.
    Rebalance,
    /// One of three processes is killed while the others answer, and comes back.
    KillOneOfThree,
    /// A process stands still for longer than its session, and goes on.
    StandStill,
    /// The broker answers nobody for a while.
    BrokerOutOfReach,
    /// The broker is killed and comes back.
    BrokerRestart,
    /// Labelled samples cannot be stored.
    FullDisk,
    /// Each stage panics.
    Panics,
    /// The time of day jumps.
    ClockJumps,
}

impl Act {
    pub(crate) const ALL: [Self; 9] = [
        Self::Kill,
        Self::Rebalance,
        Self::KillOneOfThree,
        Self::StandStill,
        Self::BrokerOutOfReach,
        Self::BrokerRestart,
        Self::FullDisk,
        Self::Panics,
        Self::ClockJumps,
    ];
}

/// One run: the processes, and everything that becomes of them.
pub(crate) struct Run<'r> {
    pub(crate) site: &'r Site,
    pub(crate) broker: &'r mut Broker,
    pub(crate) asker: &'r Asker,
    pub(crate) watch: &'r Watch,
    outputs: &'r Outputs,
    pub(crate) random: SplitMix,
    /// How long the broker is out of reach.
    pub(crate) outage: Duration,
    members: Vec<Member>,
    /// Ends of faults.
    pub(crate) calm: Vec<Instant>,
    /// Stages that panicked, and more that may have in processes that ended before they were through.
    pub(crate) panics: usize,
    pub(crate) panics_perhaps: usize,
    /// Why processes ended that nobody had asked to.
    pub(crate) ended: Vec<String>,
    pub(crate) acts: Vec<Act>,
}

/// A process of the group.
struct Member {
    name: String,
    flaw: Flaw,
    serve: Serve,
}

/// How a process that was killed is started again.
struct Restart {
    name: String,
    flaw: Flaw,
}

impl<'r> Run<'r> {
    /// Starts the first process.
    pub(crate) fn start(
        site: &'r Site,
        broker: &'r mut Broker,
        asker: &'r Asker,
        watch: &'r Watch,
        outputs: &'r Outputs,
        random: SplitMix,
        outage: Duration,
    ) -> Self {
        let mut run = Self {
            site,
            broker,
            asker,
            watch,
            outputs,
            random,
            outage,
            members: Vec::new(),
            calm: Vec::new(),
            panics: 0,
            panics_perhaps: 0,
            ended: Vec::new(),
            acts: Vec::new(),
        };
        run.join(&Flaw::default());
        run
    }

    /// Lets one thing after another go wrong until `requests` have an outcome.
    pub(crate) fn play(&mut self, requests: usize, acts: usize) {
        let mut kinds: Vec<Act> = Act::ALL.to_vec();
        kinds.retain(|act| *act != Act::BrokerRestart || self.broker.has_disk());
        let mut waiting = Vec::new();
        for number in 0..acts {
            if waiting.is_empty() {
                waiting = kinds.clone();
                self.random.shuffle(&mut waiting);
            }
            let act = waiting.pop().expect("just filled");
            let share = requests / (acts + 1);
            let moment = share * number + self.random.below(share.max(1));
            // So many that the fault meets requests in flight, and the next ones do too.
            self.allow(share * (number + 2));
            self.until_answered(moment);
            self.acts.push(act);
            self.perform(act);
            self.calm.push(Instant::now());
        }
        self.allow(requests);
        self.until_answered(requests);
        self.until_labels_are_kept();
    }

    /// Waits for the labelled samples, which have no outcome that a reader of topics sees where all is well.
    fn until_labels_are_kept(&self) {
        let deadline = Instant::now() + LABELS_MAX;
        loop {
            let stored = self.site.stored();
            let others = self.asker.others.lock().unwrap();
            let is_kept = |id: &String| stored.contains(id) || self.watch.arrival(id).is_some();
            if others.iter().all(is_kept) || Instant::now() > deadline {
                return; // what is missing then, the checker names
            }
            drop(others);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn allow(&self, requests: usize) {
        self.asker.allowed.store(requests, Ordering::Relaxed);
    }

    /// Stops all processes.
    pub(crate) fn stop(mut self) -> Outcome {
        self.members.drain(..).for_each(|member| member.serve.stop());
        Outcome {
            calm: self.calm,
            panics: self.panics,
            panics_perhaps: self.panics_perhaps,
            ended: self.ended,
            acts: self.acts,
        }
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Kill => {
                let Restart { name, flaw } = self.kill_one();
                self.start_member(name, &flaw);
            }
            Act::KillOneOfThree => {
                while self.members.len() < 3 {
                    self.join(&Flaw::default());
                }
                self.pass(20);
                let Restart { name, flaw } = self.kill_one();
                self.pass(20); // the group expects it back, or shares its partitions out
                self.start_member(name, &flaw);
                self.pass(20);
                self.leave_until(1);
            }
            Act::Rebalance => {
                self.leave_until(1);
                self.join(&Flaw::default());
                self.join(&Flaw::default());
                self.pass(20);
                self.leave_until(2);
            }
            Act::StandStill => {
                let index = self.random.below(self.members.len());
                self.members[index].serve.signal("STOP");
                std::thread::sleep(SESSION + Duration::from_secs(2));
                self.members[index].serve.signal("CONT");
            }
            Act::BrokerOutOfReach => {
                self.broker.pause();
                std::thread::sleep(self.outage);
                // It may answer before the program that sends the signal has ended.
                self.calm.push(Instant::now());
                self.broker.go_on();
            }
            Act::BrokerRestart => self.broker.kill_and_restart(),
            Act::FullDisk => self.with_flaw(&Flaw {
                disk_is_full: true,
                ..Flaw::default()
            }),
            Act::Panics => {
                let order = |stage: &&str| format!("{stage}:{},", 5 + self.random.below(FLAWED_REQUESTS / 2));
                let panics: String = STAGES.iter().map(order).collect();
                self.panics += STAGES.len();
                self.with_flaw(&Flaw {
                    panics: panics + "collect:1,control:1",
                    ..Flaw::default()
                });
            }
            Act::ClockJumps => self.with_flaw(&Flaw {
                jumps: "500:600,1500:-1200,3000:300".to_owned(),
                ..Flaw::default()
            }),
        }
    }

    /// One process with a flaw does everything for a while, a label and an order beside the requests.
    fn with_flaw(&mut self, flaw: &Flaw) {
        let refused = self.others_seen();
        self.leave_until(0);
        self.join(flaw); // it may refuse a label before it is ready
        self.asker.label();
        let order = format!("order-{}", self.asker.others.lock().unwrap().len());
        let topics = &self.site.settings.kafka.topics;
        self.asker.tell(&topics.control, &order, b"no order", &[]);
        self.until(
            |run| run.watch.arrival(&order).is_some(),
            "the dead letter of an order",
        );
        if flaw.disk_is_full || !flaw.panics.is_empty() {
            self.until(
                |run| run.others_seen() > refused + 1,
                "the dead letter of a label beside that of the order",
            );
        }
        self.pass(FLAWED_REQUESTS);
        self.leave_until(0);
        self.join(&Flaw::default());
    }

    /// Kills a process and takes it out of the list; it runs no more.
    fn kill_one(&mut self) -> Restart {
        let index = self.random.below(self.members.len());
        let Member { name, flaw, serve } = self.members.remove(index);
        drop(serve);
        Restart { name, flaw }
    }

    /// A further process, under the first name that is free.
    fn join(&mut self, flaw: &Flaw) {
        let is_free = |name: &String| self.members.iter().all(|member| member.name != *name);
        let name = (0..).map(|number| format!("pod-{number}")).find(is_free);
        self.start_member(name.expect("there is always one more"), flaw);
    }

    fn start_member(&mut self, name: String, flaw: &Flaw) {
        let serve = Serve::start(self.site, &name, flaw);
        self.members.push(Member {
            name,
            flaw: flaw.clone(),
            serve,
        });
    }

    /// Asks processes to end until so many are left.
    fn leave_until(&mut self, left: usize) {
        while self.members.len() > left {
            let index = self.random.below(self.members.len());
            self.members.remove(index).serve.stop();
        }
    }

    /// Waits for so many more outcomes, or for those of all requests that may be asked.
    fn pass(&mut self, count: usize) {
        let requests = self.watch.count() - self.others_seen();
        let allowed = self.asker.allowed.load(Ordering::Relaxed);
        self.until_answered((requests + count).min(allowed));
    }

    fn until_answered(&mut self, count: usize) {
        self.until(
            |run| run.watch.count() >= count + run.others_seen(),
            "outcomes of requests",
        );
    }

    fn others_seen(&self) -> usize {
        let is_seen = |id: &&String| self.watch.arrival(id).is_some();
        self.asker.others.lock().unwrap().iter().filter(is_seen).count()
    }

    /// Waits, as a supervisor would: a process that has ended is started again, as it was.
    fn until(&mut self, condition: impl Fn(&Self) -> bool, what: &str) {
        let mut progress = (self.watch.count(), Instant::now());
        while !condition(self) {
            std::thread::sleep(Duration::from_millis(5));
            self.restart_ended();
            if self.watch.count() > progress.0 {
                progress = (self.watch.count(), Instant::now());
            }
            if progress.1.elapsed() > STILL_MAX {
                let logs: Vec<String> = self
                    .members
                    .iter()
                    .map(|member| {
                        let serve = &member.serve;
                        format!("{}:\n{}\n{}", member.name, serve.log(), serve.metrics())
                    })
                    .collect();
                let asked = self.asker.asked.lock().unwrap();
                let is_open = |id: &&String| self.watch.arrival(id).is_none();
                let open = asked.keys().filter(is_open).cloned().collect();
                let kafka = &self.site.settings.kafka;
                let look = self.outputs.look(&kafka.topics.requests, &kafka.group_id, &open);
                panic!(
                    "{what}: nothing came for {STILL_MAX:?}, {} of {} have an outcome, after {:?}\n{look}\n{}",
                    self.watch.count(),
                    asked.len(),
                    self.acts,
                    logs.join("\n")
                );
            }
        }
    }

    fn restart_ended(&mut self) {
        let ended = self
            .members
            .iter_mut()
            .position(|member| member.serve.ended().is_some());
        if let Some(index) = ended {
            let Member {
                name,
                flaw,
                mut serve,
            } = self.members.remove(index);
            let log = serve.log();
            let last: Vec<&str> = log.lines().rev().take(6).collect();
            let (status, act) = (serve.ended(), self.acts.last());
            self.ended
                .push(format!("{name}, after {act:?}: {status:?}: {last:?}"));
            if !flaw.panics.is_empty() {
                self.panics_perhaps += STAGES.len();
            }
            self.start_member(name, &flaw);
            self.calm.push(Instant::now());
        }
    }
}

/// What happened in a run.
pub(crate) struct Outcome {
    pub(crate) calm: Vec<Instant>,
    pub(crate) panics: usize,
    pub(crate) panics_perhaps: usize,
    pub(crate) ended: Vec<String>,
    pub(crate) acts: Vec<Act>,
}
