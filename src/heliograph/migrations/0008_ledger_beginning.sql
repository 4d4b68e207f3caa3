-- Since when the ledger can know what ran where: it says so rather than call somebody absent whom it never saw.
set local role heliograph_owner;

create table ledger.beginning (
    one   boolean primary key default true check (one),
    at_us bigint not null
);
insert into ledger.beginning (at_us)
    select coalesce(least(min(committed_at_us), (extract(epoch from now()) * 1e6)::bigint), (extract(epoch from now()) * 1e6)::bigint)
      from ledger.version;
grant select on ledger.beginning to heliograph_ledger;
reset role;
