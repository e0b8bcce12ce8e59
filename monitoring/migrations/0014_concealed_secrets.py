from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from approvals.concealing import conceal, reveal


def conceal_all(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for contact in apps.get_model("monitoring", "Contact").objects.exclude(concealed_secret=""):
        contact.concealed_secret = conceal(contact.concealed_secret)
        contact.save(update_fields=["concealed_secret"])


def reveal_all(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for contact in apps.get_model("monitoring", "Contact").objects.exclude(concealed_secret=""):
        contact.concealed_secret = reveal(contact.concealed_secret)
        contact.save(update_fields=["concealed_secret"])


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0013_promql"),
    ]

    operations = [
        migrations.RenameField("contact", "secret", "concealed_secret"),
        migrations.AlterField(
            "contact",
            "concealed_secret",
            models.CharField(max_length=1200, blank=True, default="", editable=False),
        ),
        migrations.RunPython(conceal_all, reveal_all),
    ]
