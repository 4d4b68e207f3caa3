-- The ledger's schema: who is subscribed, what each said of each version, and the story of each version.
--
-- One ledger writes at a time (it holds a session lock, see services/ledger), in batches: rows first, then ledger.mark, in one
-- transaction. So after any crash the tables say exactly what the marks say. Every write is an upsert that may be repeated and
-- reordered. Times ending in _us are microseconds since 1970.

create schema ledger authorization heliograph_owner;
grant usage on schema ledger to heliograph_ledger;
set role heliograph_owner;

-- How far each stream of the log has been taken in; meaningless when the log's identity is another.
create table ledger.mark (
    stream     text primary key,
    identity   text not null,
    marks      jsonb not null,                  -- shard -> resume token
    updated_at timestamptz not null default now()
);

create table ledger.node (
    node        text primary key,
    region      text not null,
    connections bigint not null,
    alive_at_us bigint not null,
    lost        boolean not null                -- silent too long, or said goodbye
);

-- One subscription on one connection, with what the instance runs on it. The newest connection of an instance is what it is now;
-- older ones are kept as long as a denominator may ask who was there.
create table ledger.subscription (
    connection   text not null,
    subscription bigint not null,
    namespace    text not null,
    environment  text not null,
    instance     text not null,
    incarnation  bigint not null,
    node         text not null,
    region       text not null,
    fingerprint  jsonb not null,
    view         text[] not null,
    since_us     bigint not null,
    until_us     bigint,                        -- null: live
    ended        text,
    runs_epoch   bigint,                        -- what it has applied: at first what it said to have
    runs_number  bigint,
    runs_version text,
    runs_since_us bigint,
    answered_number bigint,                     -- its latest receipt
    answered_state  text,
    answered_reason text,
    answered_at_us  bigint,
    primary key (connection, subscription)
) with (fillfactor = 70);                       -- receipts update what it runs in place

create index subscription_of_instance on ledger.subscription (namespace, environment, instance, incarnation desc, since_us desc);
create index subscription_ended on ledger.subscription (until_us);
create index subscription_live_on_node on ledger.subscription (node) where until_us is null;

create table ledger.version (
    namespace       text not null,
    environment     text not null,
    epoch           bigint not null,
    number          bigint not null,
    version         text not null unique,
    received_at_us  bigint not null,
    committed_at_us bigint not null,
    trace           text,
    closed_at_us    bigint,                     -- null: answers are still awaited
    outcome         text,                       -- complete | deadline | overtaken | unseen
    report          jsonb,                      -- as served, once closed
    digest          text,                       -- over the receipts that were there when it was closed
    audit           text check (audit in ('pending', 'posted', 'dead')),
    audit_attempts  int not null default 0,
    audit_due_us    bigint,
    primary key (namespace, environment, epoch, number)
);

create index version_open on ledger.version (committed_at_us) where closed_at_us is null;
create index version_to_audit on ledger.version (audit_due_us) where audit = 'pending';

create table ledger.head (
    namespace   text not null,
    environment text not null,
    epoch       bigint not null,
    number      bigint not null,
    version     text not null,
    issued_at   text not null,
    payload     text not null,                  -- the signed text
    primary key (namespace, environment)
);

create table ledger.fan_out (
    namespace     text not null,
    environment   text not null,
    epoch         bigint not null,
    number        bigint not null,
    node          text not null,
    recipients    bigint not null,
    logged_at_us  bigint not null,
    started_at_us bigint not null,
    done_at_us    bigint not null,
    primary key (namespace, environment, epoch, number, node)
);

create index fan_out_age on ledger.fan_out (done_at_us);

-- Ordered from the weakest to the strongest answer: see services/ledger/answers.py, better().
create type ledger.state as enum ('rejected', 'superseded', 'unaffected', 'applied');

-- The day belongs to the key because partitions need it: a receipt sent again across midnight may stand twice, and readers take
-- the better one. A receipt that comes after its version was closed is `late`: kept, and outside the digest that was published.
create table ledger.receipt (
    version        text not null,
    instance       text not null,
    subscription   bigint not null,
    day            date not null,
    state          ledger.state not null,
    reason         text,
    applied_at_us  bigint not null,
    received_at_us bigint not null,
    connection     text not null,
    node           text not null,
    trace          text,
    late           boolean not null,
    primary key (version, instance, subscription, day)
) partition by range (day);

create table ledger.receipt_default partition of ledger.receipt default;

-- Makes the daily partitions from today on. Safe to call at any time and by several at once; a day that the default partition
-- already has rows for stays there.
create function ledger.prepare_days(p_days int) returns void
language plpgsql security definer set search_path = ledger, pg_temp set timezone = 'UTC' as $$
declare
    v_day date;
begin
    perform pg_advisory_xact_lock(hashtext('ledger.prepare_days'));
    for v_day in select current_date + n from generate_series(0, p_days) n loop
        continue when to_regclass(format('ledger.receipt_%s', to_char(v_day, 'YYYYMMDD'))) is not null;
        continue when exists (select from ledger.receipt_default where day = v_day);
        execute format('create table ledger.receipt_%s partition of ledger.receipt for values from (%L) to (%L)',
                       to_char(v_day, 'YYYYMMDD'), v_day, v_day + 1);
    end loop;
end $$;

-- Drops the receipts of days before p_receipts_before, and what no open propagation can need of the rest. Returns the number of
-- partitions dropped.
create function ledger.retain(p_receipts_before date, p_versions_before_us bigint, p_subscriptions_before_us bigint) returns int
language plpgsql security definer set search_path = ledger, pg_temp set timezone = 'UTC' as $$
declare
    v_table text;
    v_dropped int := 0;
begin
    for v_table in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'ledger.receipt'::regclass and c.relname ~ '^receipt_[0-9]{8}$'
          and to_date(right(c.relname, 8), 'YYYYMMDD') < p_receipts_before
    loop
        execute format('drop table ledger.%I', v_table);
        v_dropped := v_dropped + 1;
    end loop;
    delete from ledger.receipt_default where day < p_receipts_before;
    delete from ledger.fan_out where done_at_us < p_versions_before_us;
    delete from ledger.version
     where committed_at_us < p_versions_before_us and closed_at_us is not null and audit is distinct from 'pending';
    delete from ledger.subscription where until_us < p_subscriptions_before_us;
    delete from ledger.node where lost and alive_at_us < p_subscriptions_before_us;
    return v_dropped;
end $$;

revoke all on function ledger.prepare_days(int), ledger.retain(date, bigint, bigint) from public;
grant execute on function ledger.prepare_days(int), ledger.retain(date, bigint, bigint) to heliograph_ledger;
grant select, insert, update on all tables in schema ledger to heliograph_ledger;
reset role;
