// SPDX-License-Identifier: GPL-2.0

//! Has each allocation of an operation fail once.
//!
//! ```text
//! faults [--every N] modules FILE NAME    loads and unloads a module
//! faults [--every N] qos DISK                         what there is to be done with the target qos
//! faults [--every N] multipath SELECTOR PATH...       and with a path selector
//! faults [--every N] bind DRIVER DEVICE               binds a virtio driver to a device, and unbinds it
//! faults [--every N] sleep DRIVER DEVICE              puts the device to sleep, and wakes it up
//! ```
//!
//! In a guest whose kernel has fault injection. Prints a line for each operation; what should not be
//! begins with "problem: ", and the status says whether there was any.

use ferrule_control::{
    dm::{
        flag,
        name_of,
        node_of,
        Command,
        Control,
        Errno,
        Line,
        Request, //
    },
    fault::{
        any_allocation_may_fail,
        c_string,
        open_direct,
        references,
        threads,
        Call,
        Operation,
        Page,
        Report, //
    },
};
use std::{
    env,
    fs::File,
    process::ExitCode, //
};

const ENOMEM: &[Errno] = &[libc::ENOMEM];
/// The block layer and device mapper say it when a disk that comes with a first table is not registered, or
/// its profile of inline encryption not made; and dm-multipath without its own structure.
const ENOMEM_OR_EINVAL: &[Errno] = &[libc::ENOMEM, libc::EINVAL];

type Done = Result<(), Errno>;

fn main() -> ExitCode {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let mut every = 1;
    if words.first().is_some_and(|word| word == "--every") {
        every = words[1].parse().expect("a number");
        words.drain(..2);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    any_allocation_may_fail().expect("fault injection in debugfs");
    let mut report = Report::default();
    match words[..] {
        ["modules", file, name] => modules(&mut report, every, file, name),
        ["qos", disk] => qos(&mut report, every, disk),
        ["multipath", selector, ref paths @ ..] => multipath(&mut report, every, selector, paths),
        ["bind", driver, device] => bind(&mut report, every, driver, device),
        ["sleep", driver, device] => sleep(&mut report, every, driver, device),
        _ => panic!("what to do?"),
    }
    println!(
        "{} faults, {} errors, {} problems",
        report.faults, report.errors, report.problems
    );
    if report.problems == 0 && report.errors > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn ioctl(control: &Control, request: Request) -> Call<'_> {
    Call::Ioctl(control, Box::new(request))
}

/// A module comes and goes.
fn modules(report: &mut Report, every: u32, file: &str, name: &str) {
    let control = Control::open().expect("device mapper");
    let load = || Call::LoadModule(File::open(file).expect("the module"));
    let unload = || Call::UnloadModule(c_string(&name.replace('-', "_")));
    let mut look = || {
        // What else there is to be left over is memory, which kmemleak finds.
        let threads: usize = ["dm-qos", "kworker/R-dm-qos", "kworker/R-dm-q"]
            .into_iter()
            .map(threads)
            .sum();
        format!(
            "{}threads: {threads}\ntargets: {:?}\n",
            references(name),
            control.targets()
        )
    };
    report.try_each(Operation {
        name: &format!("load {name}"),
        errors: ENOMEM,
        must_succeed: false,
        may_stop_halfway: false,
        every,
        by_chance: None,
        prepare: &mut || load(),
        undo: &mut || run(unload()),
        look: &mut look,
    });
    run(load()).expect("it loads");
    report.try_each(Operation {
        name: &format!("unload {name}"),
        errors: &[],
        must_succeed: true,
        may_stop_halfway: false,
        every,
        by_chance: None,
        prepare: &mut || unload(),
        undo: &mut || run(load()),
        look: &mut look,
    });
    run(unload()).expect("it unloads");
}

/// Without a fault.
fn run(mut call: Call<'_>) -> Done {
    call.run()
}

/// Devices of which the state is looked at.
struct Devices<'a> {
    control: &'a Control,
    names: &'a [&'a str],
    module: &'a str,
}

impl Devices<'_> {
    fn look(&self) -> String {
        let mut text = references(self.module);
        for name in self.names {
            match self.control.state(name) {
                Ok(state) => {
                    text += &format!("{name}: suspended: {}\n", state.is_suspended);
                    for line in &state.active {
                        text += &format!("{name}: active: {line}\n");
                    }
                    for line in &state.inactive {
                        text += &format!("{name}: inactive: {line}\n");
                    }
                    if !state.active.is_empty() && state.active[0].target == "multipath" {
                        let status = self.control.status(name, 0).expect("status");
                        text += &format!("{name}: {}\n", without_counts(&status[0].words));
                    }
                }
                Err(errno) => text += &format!("{name}: {}\n", name_of(errno)),
            }
        }
        text
    }

    fn remove_all(&self) {
        for name in self.names {
            let _ = self.control.remove(name);
        }
    }
}

/// What a multipath device's status says of groups and paths: which are disabled (`D`), or failed (`F`). How
/// often, which group had I/O already, and what was measured, changes by itself.
fn without_counts(status: &str) -> String {
    let words = status.split(' ').skip(3);
    let words = words.map(|word| match word {
        "E" => "A",
        word if word.parse::<f64>().is_ok() => "n",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The operations on devices.
struct Operations<'a> {
    report: &'a mut Report,
    devices: &'a Devices<'a>,
    /// Of the allocations, with a first table: nearly all are those of its disk.
    every: u32,
}

impl<'a> Operations<'a> {
    /// One that fails for want of memory.
    fn fails(&mut self, name: &str, request: impl Fn() -> Request, undo: impl Fn() -> Done) {
        let control = self.devices.control;
        self.add(name, ENOMEM, &mut || ioctl(control, request()), undo);
    }

    /// The same, of what makes a disk.
    fn begins(&mut self, name: &str, request: impl Fn() -> Request, undo: impl Fn() -> Done) {
        let control = self.devices.control;
        let prepare = &mut || ioctl(control, request());
        self.try_each(
            name,
            ENOMEM_OR_EINVAL,
            (self.every, None),
            false,
            prepare,
            undo,
        );
    }

    /// One of which allocations fail by chance.
    fn fails_by_chance(
        &mut self,
        name: &str,
        request: impl Fn() -> Request,
        undo: impl Fn() -> Done,
    ) {
        let control = self.devices.control;
        let prepare = &mut || ioctl(control, request());
        self.try_each(name, ENOMEM_OR_EINVAL, (1, Some(200)), false, prepare, undo);
    }

    /// The same, of a resume.
    fn resumes(&mut self, name: &str, request: impl Fn() -> Request, undo: impl Fn() -> Done) {
        let control = self.devices.control;
        self.try_each(
            name,
            ENOMEM,
            (1, None),
            true,
            &mut || ioctl(control, request()),
            undo,
        );
    }

    /// One that takes what comes.
    fn succeeds(&mut self, name: &str, request: impl Fn() -> Request, undo: impl Fn() -> Done) {
        let control = self.devices.control;
        self.add(name, &[], &mut || ioctl(control, request()), undo);
    }

    fn add<'c>(
        &mut self,
        name: &str,
        errors: &[Errno],
        prepare: &mut dyn FnMut() -> Call<'c>,
        undo: impl Fn() -> Done,
    ) {
        self.try_each(name, errors, (1, None), false, prepare, undo);
    }

    fn try_each<'c>(
        &mut self,
        name: &str,
        errors: &[Errno],
        (every, by_chance): (u32, Option<u32>),
        may_stop_halfway: bool,
        prepare: &mut dyn FnMut() -> Call<'c>,
        undo: impl Fn() -> Done,
    ) {
        self.report.try_each(Operation {
            name,
            errors,
            must_succeed: errors.is_empty(),
            may_stop_halfway,
            every,
            by_chance,
            prepare,
            undo: &mut || undo(),
            look: &mut || self.devices.look(),
        });
    }
}

/// Does one after the other.
fn all(steps: impl IntoIterator<Item = Done>) -> Done {
    steps.into_iter().collect()
}

fn nothing() -> Done {
    Ok(())
}

/// What the target qos does.
fn qos(report: &mut Report, every: u32, disk: &str) {
    let control = &Control::open().expect("device mapper");
    let devices = &Devices {
        control,
        names: &["fa", "fb"],
        module: "dm-qos",
    };
    let line = |start: u64, words: &str| Line {
        start,
        length: 2048,
        target: "qos".into(),
        words: format!(
            "{disk} {start} {} {words}",
            words.split_whitespace().count()
        ),
    };
    let alone = &[line(0, "iops 50 read_bps 3M")][..];
    let other = &[
        line(0, "iops 70"),
        line(2048, "iops 80"),
        line(4096, "iops 70"),
    ][..];
    let member = &[line(0, "group g group_iops 1000 reserve_iops 100 weight 7")][..];
    let second = &[line(0, "group g reserve_iops 50 read_iops 900")][..];
    let create = || control.create("fa");
    let remove = || control.remove("fa");
    let load = |table| control.load("fa", table);
    let resume = || control.resume("fa");
    let clear = || control.clear("fa");
    let set = |words: &str| control.message("fa", words).map(|_| ());
    let new = |command, flags| move || Request::new(command, "fa", flags);
    let loading = |table| move || Request::load("fa", 0, table);
    let message = |text| move || Request::message("fa", 0, text);
    let mut on = Operations {
        report,
        devices,
        every,
    };

    create().expect("create");
    // The first table decides what kind of device it is.
    on.begins("load, a first table", loading(alone), || {
        all([remove(), create()])
    });
    load(alone).expect("load");
    on.succeeds("clear", new(Command::Clear, 0), || load(alone));
    on.resumes("resume, a first table", new(Command::Suspend, 0), || {
        all([remove(), create(), load(alone)])
    });
    resume().expect("resume");
    on.fails("load, another", loading(other), clear);
    on.fails("load, the same", loading(alone), clear);
    on.fails("load, which makes a group", loading(member), clear);
    on.fails_by_chance("load, another", loading(other), clear);
    on.fails_by_chance("load, a group", loading(member), clear);
    on.fails("suspend", new(Command::Suspend, flag::SUSPEND), resume);
    let noflush = flag::SUSPEND | flag::NOFLUSH | flag::SKIP_LOCKFS;
    on.fails("suspend, noflush", new(Command::Suspend, noflush), resume);
    control.suspend("fa", 0).expect("suspend");
    on.resumes("resume, the same table", new(Command::Suspend, 0), || {
        control.suspend("fa", 0)
    });
    resume().expect("resume");
    load(other).expect("load");
    on.resumes("resume, another table", new(Command::Suspend, 0), || {
        all([load(alone), resume(), load(other)])
    });
    clear().expect("clear");
    on.fails(
        "set",
        message("set iops 5 write_iops 7 bps 9M io_size 4K"),
        || set("set iops 50 write_iops 0 bps 0 io_size 0"),
    );
    on.fails("reset", message("reset"), nothing);
    on.fails("histogram", message("histogram"), nothing);
    let status = |flags| move || Request::status("fa", flags);
    on.fails("status", status(0), nothing);
    on.fails("table", status(flag::STATUS_TABLE), nothing);
    on.fails("remove", new(Command::Remove, 0), || {
        all([create(), load(alone), resume()])
    });

    // I/O that passes, and I/O that waits for its time.
    let node = node_of(control.state("fa").expect("state").dev);
    let file = open_direct(&node).expect("the device");
    let page = || Box::new(Page([0x5a; 4096]));
    on.add(
        "read",
        ENOMEM,
        &mut || Call::DirectRead(&file, page()),
        nothing,
    );
    on.add(
        "write",
        ENOMEM,
        &mut || Call::DirectWrite(&file, page()),
        nothing,
    );
    set("set burst_ms 0 iops 200").expect("set");
    on.add(
        "read, held",
        ENOMEM,
        &mut || Call::DirectRead(&file, page()),
        nothing,
    );
    on.add(
        "write, held",
        ENOMEM,
        &mut || Call::DirectWrite(&file, page()),
        nothing,
    );
    drop(file);

    // Members come and go.
    all([load(member), resume()]).expect("a group");
    on.fails(
        "set, the capacity",
        message("set group_iops 700 group_depth 3"),
        || set("set group_iops 1000 group_depth 0"),
    );
    control.create("fb").expect("create");
    on.begins(
        "load, which joins a group",
        || Request::load("fb", 0, second),
        || all([control.remove("fb"), control.create("fb")]),
    );
    control.load("fb", second).expect("load");
    on.resumes(
        "resume, a member",
        || Request::new(Command::Suspend, "fb", 0),
        || {
            all([
                control.remove("fb"),
                control.create("fb"),
                control.load("fb", second),
            ])
        },
    );
    control.resume("fb").expect("resume");
    on.fails(
        "set, a reservation",
        message("set reserve_iops 300"),
        || set("set reserve_iops 100"),
    );
    on.fails(
        "remove, a member",
        || Request::new(Command::Remove, "fb", 0),
        || {
            all([
                control.create("fb"),
                control.load("fb", second),
                control.resume("fb"),
            ])
        },
    );
    load(alone).expect("load");
    on.resumes(
        "resume, which leaves the group",
        new(Command::Suspend, 0),
        || all([load(member), resume(), load(alone)]),
    );
    clear().expect("clear");
    control.remove("fb").expect("remove");
    on.fails("remove, the last member", new(Command::Remove, 0), || {
        all([create(), load(member), resume()])
    });
    devices.remove_all();
}

/// What a path selector does.
fn multipath(report: &mut Report, every: u32, selector: &str, paths: &[&str]) {
    let control = &Control::open().expect("device mapper");
    let devices = &Devices {
        control,
        names: &["fm"],
        module: "dm-round-robin-rs",
    };
    let table = |selector: &str, with: &dyn Fn(usize) -> String| {
        let group = paths.iter().enumerate();
        let group: String = group
            .map(|(n, path)| format!(" {path} {}", with(n)))
            .collect();
        [Line {
            start: 0,
            length: 2048,
            target: "multipath".into(),
            words: format!(
                "2 queue_mode bio 0 2 1 {selector} {} 1{group} {selector} {} 1{group}",
                paths.len(),
                paths.len()
            ),
        }]
    };
    let equal = &table(&format!("{selector} 0"), &|_| "1".into());
    let weighted = &table(&format!("{selector} 2 latency nearest"), &|n| {
        format!("{}", 3 * n + 1)
    });
    let create = || control.create("fm");
    let remove = || control.remove("fm");
    let load = |table| control.load("fm", table);
    let resume = || control.resume("fm");
    let clear = || control.clear("fm");
    let send = |words: &str| control.message("fm", words).map(|_| ());
    let new = |command, flags| move || Request::new(command, "fm", flags);
    let loading = |table| move || Request::load("fm", 0, table);
    let message = |text: String| move || Request::message("fm", 0, &text);
    let mut on = Operations {
        report,
        devices,
        every,
    };

    create().expect("create");
    for (name, table) in [("equal", equal), ("weighted", weighted)] {
        on.begins(&format!("load, {name}"), loading(table), || {
            all([remove(), create()])
        });
        load(table).expect("load");
        on.succeeds(&format!("clear, {name}"), new(Command::Clear, 0), || {
            load(table)
        });
        on.resumes(&format!("resume, {name}"), new(Command::Suspend, 0), || {
            all([remove(), create(), load(table)])
        });
        resume().expect("resume");
        for path in [paths[0], paths[paths.len() - 1]] {
            let (fail, reinstate) = (
                format!("fail_path {path}"),
                format!("reinstate_path {path}"),
            );
            on.fails(&format!("{fail}, {name}"), message(fail.clone()), || {
                send(&reinstate)
            });
            send(&fail).expect("fail_path");
            on.fails(&format!("{reinstate}, {name}"), message(reinstate), || {
                send(&fail)
            });
        }
        for path in paths {
            send(&format!("reinstate_path {path}")).expect("reinstate_path");
        }
        for what in ["switch_group", "disable_group"] {
            let undo = if what == "switch_group" {
                "switch_group 1"
            } else {
                "enable_group 2"
            };
            on.fails(
                &format!("{what}, {name}"),
                message(format!("{what} 2")),
                || send(undo),
            );
        }
        let node = node_of(control.state("fm").expect("state").dev);
        let file = open_direct(&node).expect("the device");
        let page = || Box::new(Page([0x5a; 4096]));
        on.add(
            &format!("read, {name}"),
            ENOMEM,
            &mut || Call::DirectRead(&file, page()),
            nothing,
        );
        drop(file);
        for flags in [0, flag::STATUS_TABLE] {
            let status = || Request::status("fm", flags);
            on.fails(&format!("status {flags:#x}, {name}"), status, nothing);
        }
        let other = if name == "equal" { weighted } else { equal };
        on.begins(&format!("load, after {name}"), loading(other), clear);
        load(other).expect("load");
        on.fails_by_chance(&format!("load, after {name}"), loading(other), || {
            load(other)
        });
        on.resumes(
            &format!("resume, after {name}"),
            new(Command::Suspend, 0),
            || all([load(table), resume(), load(other)]),
        );
        clear().expect("clear");
        on.fails(&format!("remove, {name}"), new(Command::Remove, 0), || {
            all([create(), load(table), resume()])
        });
        all([remove(), create()]).expect("a new device");
    }
    devices.remove_all();
}

/// A driver is bound to a device.
fn bind(report: &mut Report, every: u32, driver: &str, device: &str) {
    let folder = format!("/sys/bus/virtio/drivers/{driver}");
    let write = |name: &str| {
        let file = File::options().write(true).open(format!("{folder}/{name}"));
        Call::Write(file.expect("the driver"), device.into())
    };
    let mut look = || {
        let is_bound = std::fs::exists(format!("{folder}/{device}")).expect("sysfs");
        format!("bound: {is_bound}\nthreads: {}\n", threads("ferrule"))
    };
    report.try_each(Operation {
        name: "bind",
        errors: &[libc::ENOMEM, libc::ENODEV],
        must_succeed: false,
        may_stop_halfway: false,
        every,
        by_chance: None,
        prepare: &mut || write("bind"),
        undo: &mut || run(write("unbind")),
        look: &mut look,
    });
    run(write("bind")).expect("it binds");
    report.try_each(Operation {
        name: "unbind",
        errors: &[],
        must_succeed: true,
        may_stop_halfway: false,
        every,
        by_chance: None,
        prepare: &mut || write("unbind"),
        undo: &mut || run(write("bind")),
        look: &mut look,
    });
    run(write("unbind")).expect("it unbinds");
}

/// A virtio device, with its driver, sleeps and wakes up (`selftests/modules/virtio-sleep.c`). A driver that
/// does not wake up has to be bound again.
fn sleep(report: &mut Report, every: u32, driver: &str, device: &str) {
    let folder = format!("/sys/bus/virtio/drivers/{driver}");
    let write = |path: &str, text: String| {
        let file = File::options().write(true).open(path);
        Call::Write(file.expect("sysfs"), text.into())
    };
    let bind = |name: &str| run(write(&format!("{folder}/{name}"), device.into()));
    let parameter = "/sys/module/virtio_sleep/parameters/device";
    let put = |what: &str| write(parameter, format!("{what} {device}"));
    let mut look = || {
        let is_bound = std::fs::exists(format!("{folder}/{device}")).expect("sysfs");
        format!("bound: {is_bound}\nthreads: {}\n", threads("ferrule"))
    };
    report.try_each(Operation {
        name: "freeze",
        // Sysfs needs memory for what is written to it, and the driver none.
        errors: ENOMEM,
        must_succeed: false,
        may_stop_halfway: false,
        every: 1,
        by_chance: None,
        prepare: &mut || put("freeze"),
        undo: &mut || run(put("restore")),
        look: &mut look,
    });
    run(put("freeze")).expect("it sleeps");
    report.try_each(Operation {
        name: "restore",
        errors: ENOMEM,
        must_succeed: false,
        may_stop_halfway: true,
        every,
        by_chance: None,
        prepare: &mut || put("restore"),
        // Whatever it is by now.
        undo: &mut || all([bind("unbind"), bind("bind"), run(put("freeze"))]),
        look: &mut look,
    });
    run(put("restore")).expect("it wakes up");
}
