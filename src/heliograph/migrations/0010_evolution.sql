-- What instances declare to be able to read, and what an environment does when a change would break somebody.
set local role heliograph_owner;

-- No row: warn.
create table registry.policy (
    namespace     text not null,
    environment   text not null,
    compatibility text not null check (compatibility in ('off', 'warn', 'refuse')),
    changed_by    text not null,
    changed_at    timestamptz not null default now(),
    primary key (namespace, environment)
);
grant select, insert, update on registry.policy to heliograph_registry;

-- Schemas that applications bind configs to, each text once; subscriptions name them by digest: config -> digest.
create table ledger.declared_schema (
    digest  text primary key,
    body    text not null,
    seen_at timestamptz not null default now()
);
alter table ledger.subscription add column declares jsonb not null default '{}';
create index subscription_declaring on ledger.subscription (namespace, environment) where until_us is null and declares <> '{}';
grant select, insert, update on ledger.declared_schema to heliograph_ledger;

-- Forgets texts that were not seen since and that no kept subscription names; how many.
create function ledger.forget_schemas(p_before timestamptz) returns int
language plpgsql security definer set search_path = ledger, pg_temp as $$
declare
    v_count int;
begin
    delete from ledger.declared_schema d
     where d.seen_at < p_before
       and not exists (select from ledger.subscription s, jsonb_each_text(s.declares) named where named.value = d.digest);
    get diagnostics v_count = row_count;
    return v_count;
end $$;
revoke all on function ledger.forget_schemas(timestamptz) from public;
grant execute on function ledger.forget_schemas(timestamptz) to heliograph_ledger;
reset role;
